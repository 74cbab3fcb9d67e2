"""Answer the calls to the fake Kaggle: competitions and submissions, kernels, datasets.

Each method is named after the call that it answers: `save_kernel` answers SaveKernel.
"""

import copy
import hashlib
import io
import json
import re
import zipfile
from typing import Any
from urllib.parse import quote

from fake_server import ApiError

SLUG = "llm-classification-finetuning"
Body = dict[str, Any]


def slugify(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def make_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in files.items():
            # ZipInfo has a fixed time, so the same files give the same bytes and the same ETag.
            bundle.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def step(item: Body) -> str:
    """Return the next state of an item's script. The last one stays."""
    script: list[str] = item["script"]
    return script.pop(0) if len(script) > 1 else script[0]


# What a kernel's metadata repeats from the request that pushed it.
PUSHED_METADATA = (
    "language",
    "kernelType",
    "isPrivate",
    "enableGpu",
    "enableInternet",
    "kernelDataSources",
    "datasetDataSources",
    "competitionDataSources",
)


class Competitions:
    """Data files and submissions."""

    def start_competitions(self) -> None:
        self.rules_accepted = {SLUG}
        self.competitions: dict[str, dict[str, bytes]] = {
            SLUG: {
                "train.csv": b"id,model_a,model_b,prompt,response_a,response_b,"
                b"winner_model_a,winner_model_b,winner_tie\n",
                "test.csv": b"id,prompt,response_a,response_b\n",
                "sample_submission.csv": b"id,winner_model_a,winner_model_b,winner_tie\n",
            }
        }
        # Sent instead of a good archive.
        self.archive: bytes | None = None
        self.notebooks_only = True
        self.submission_script = ["PENDING", "PENDING", "COMPLETE"]
        self.submission_error = ""
        self.public_score = "0.98765"
        self.daily_limit = 5
        self.submissions: list[Body] = []

    def store(self, name: str, data: bytes) -> str:
        """Return a signed address for these bytes."""
        tag = hashlib.sha256(data).hexdigest()[:16]
        self.blobs[tag] = data
        return f"{self.url}/_blob/{tag}/{quote(name)}?X-Goog-Signature=signed5ecret"

    def _files(self, slug: str) -> dict[str, bytes]:
        if slug not in self.competitions:
            raise ApiError(404, "NotFound")
        if slug not in self.rules_accepted:
            raise ApiError(
                403,
                "You must accept this competition's rules before you'll be able to download files.",
            )
        return self.competitions[slug]

    def download_data_files(self, body: Body) -> Any:
        bundle = make_zip(self._files(body["competitionName"]))
        return self.redirect("archive.zip", bundle if self.archive is None else self.archive)

    def download_data_file(self, body: Body) -> Any:
        files = self._files(body["competitionName"])
        if body["fileName"] not in files:
            raise ApiError(404, "NotFound")
        return self.redirect(body["fileName"], files[body["fileName"]])

    def list_data_files(self, body: Body) -> Any:
        files = sorted(self._files(body["competitionName"]).items())
        start = int(body.get("pageToken") or 0)
        size = body.get("pageSize") or 20
        rows = [
            {
                "ref": name,
                "name": name,
                "totalBytes": len(data),
                "creationDate": "2025-02-01T00:00:00.000Z",
            }
            for name, data in files[start : start + size]
        ]
        return {
            "files": rows,
            "nextPageToken": str(start + size) if start + size < len(files) else "",
        }

    def get_competition(self, body: Body) -> Any:
        slug = body["competitionName"]
        if slug not in self.competitions:
            raise ApiError(404, "NotFound")
        return {
            "id": 1,
            "ref": f"https://www.kaggle.com/competitions/{slug}",
            "isKernelsSubmissionsOnly": self.notebooks_only,
            "userHasEntered": slug in self.rules_accepted,
            "maxDailySubmissions": self.daily_limit,
            "evaluationMetric": "Log Loss",
            "submissionsDisabled": False,
        }

    def create_code_submission(self, body: Body) -> Any:
        self._files(body["competitionName"])
        kernel = self.kernels.get(f"{body.get('kernelOwner')}/{body.get('kernelSlug')}")
        if kernel is None or body.get("kernelVersion", 0) not in kernel["versions"]:
            raise ApiError(404, "Could not find provided notebook")
        version = kernel["versions"][body["kernelVersion"]]
        if version["last"] != "COMPLETE":
            raise ApiError(400, "Notebook version has not finished running")
        if body.get("fileName") not in version["files"]:
            raise ApiError(
                400, f"Output file {body.get('fileName')!r} not found in the notebook version"
            )
        if version["request"].get("enableInternet"):
            raise ApiError(400, "Your Notebook cannot use internet access in this competition.")
        return self._add_submission(body, "submission.csv")

    def _add_submission(self, body: Body, file_name: str) -> Any:
        if len(self.submissions) >= self.daily_limit:
            raise ApiError(400, "You have used all of your submissions for today.")
        ref = self.next_id()
        submission = {
            "ref": ref,
            "script": list(self.submission_script),
            "fileName": body.get("fileName", file_name),
            "description": body.get("submissionDescription", ""),
            "competition": body["competitionName"],
        }
        self.submissions.insert(0, submission)
        return {"message": "Successfully submitted to LLM Classification Finetuning", "ref": ref}

    def start_submission_upload(self, body: Body) -> Any:
        self._files(body["competitionName"])
        return self.start_upload(body)

    def create_submission(self, body: Body) -> Any:
        upload = self.uploads.get(body.get("blobFileTokens", ""))
        if not upload or upload["data"] is None:
            raise ApiError(400, "Blob not uploaded")
        return self._add_submission(body, upload["name"])

    def _submission(self, submission: Body) -> Body:
        status = step(submission)
        answer = {
            **{key: submission[key] for key in ("ref", "description", "fileName")},
            "date": "2026-11-23T18:00:00.000Z",
            "status": status,
            "submittedBy": self.owner,
            "teamName": self.owner,
            "totalBytes": 1,
            "url": f"https://www.kaggle.com/submissions/{submission['ref']}",
        }
        if status == "COMPLETE":
            answer |= {"publicScore": self.public_score, "privateScore": ""}
        if status == "ERROR":
            answer["errorDescription"] = self.submission_error
        return answer

    def list_submissions(self, body: Body) -> Any:
        self._files(body["competitionName"])
        slug = body["competitionName"]
        listed = [item for item in self.submissions if item["competition"] == slug]
        size = body.get("pageSize") or 20
        page = body.get("page") or 1
        on_page = listed[(page - 1) * size : page * size]
        return {"submissions": [self._submission(item) for item in on_page]}

    def get_submission(self, body: Body) -> Any:
        for submission in self.submissions:
            if submission["ref"] == body.get("ref"):
                return self._submission(submission)
        raise ApiError(404, "NotFound")

    def get_submission_limits(self, body: Body) -> Any:
        self._files(body["competitionName"])
        count = len(self.submissions)
        left = max(0, self.daily_limit - count)
        return {
            "numToday": count,
            "numTotal": count,
            "numAllowedNow": left,
            "limitedByTotal": False,
        }


class Kernels:
    """Notebooks, their versions, states, logs and outputs; the GPU quota."""

    def start_kernels(self) -> None:
        self.kernel_script = ["QUEUED", "RUNNING", "COMPLETE"]
        self.kernel_failure = ""
        self.kernel_log = [{"stream_name": "stdout", "time": 0.1, "data": "hello\n"}]
        self.kernel_files = {
            "submission.csv": b"id,winner_model_a,winner_model_b,winner_tie\n"
            b"1,0.3,0.3,0.4\n2,0.5,0.25,0.25\n"
        }
        self.gpu_used_s = 3600
        self.gpu_total_s = 108000
        self.max_gpu_sessions = 2
        self.ignore_version_label = False
        self.models = {"kituser/enc/transformers/small"}
        self.kernels: dict[str, Body] = {}

    def save_kernel(self, body: Body) -> Any:
        slug = body.get("slug", "")
        if not slug.startswith(self.owner + "/"):
            return {"error": "Notebook not found", "ref": "", "url": ""}

        gpu = bool(body.get("enableGpu")) or str(body.get("machineShape", "")).startswith("Nvidia")
        running = [
            version
            for kernel in self.kernels.values()
            for version in kernel["versions"].values()
            if version["gpu"] and version["last"] in ("QUEUED", "RUNNING")
        ]
        if gpu and len(running) >= self.max_gpu_sessions:
            error = f"Maximum batch GPU session count of {self.max_gpu_sessions} reached."
            return {"error": error, "ref": "", "url": ""}
        if len(body.get("text", "").encode()) >= 1_000_000:
            raise ApiError(400, "The kernel source must be less than 1 megabytes in size.")

        # A new kernel takes its slug from its title.
        if slug not in self.kernels and body.get("newTitle"):
            slug = f"{self.owner}/{slugify(body['newTitle'])}"
        kernel = self.kernels.setdefault(slug, {"versions": {}, "id": self.next_id()})
        number = len(kernel["versions"]) + 1

        # A notebook without a kernelspec is accepted and then fails.
        script = list(self.kernel_script)
        log = list(self.kernel_log)
        if body.get("kernelType") == "notebook" and not _has_kernelspec(body.get("text", "")):
            script = ["QUEUED", "ERROR"]
            line = "ValueError: No kernel name found in notebook and no override provided.\n"
            log = [{"stream_name": "stderr", "time": 3.2, "data": line}]

        # The P100 is retired: such a run gets the default GPU.
        shape = body.get("machineShape") or ("NvidiaTeslaT4" if gpu else "None")
        if shape == "NvidiaTeslaP100":
            shape = "NvidiaTeslaT4"
        kernel["versions"][number] = {
            "script": script,
            "last": script[0],
            "gpu": gpu,
            "shape": shape,
            "request": copy.deepcopy(body),
            "files": dict(self.kernel_files),
            "log": log,
        }

        # A source that does not exist is dropped, and named in the answer.
        sources = {
            "invalidDatasetSources": (body.get("datasetDataSources", []), self.datasets),
            "invalidModelSources": (body.get("modelDataSources", []), self.models),
            "invalidKernelSources": (body.get("kernelDataSources", []), self.kernels),
            "invalidCompetitionSources": (
                body.get("competitionDataSources", []),
                self.competitions,
            ),
        }
        invalid = {
            # A dataset or model may be named with a version.
            key: [name for name in names if re.sub(r"/\d+$", "", name) not in known]
            for key, (names, known) in sources.items()
        }
        return {
            "ref": "/code/" + slug,
            "url": "https://www.kaggle.com/code/" + slug,
            "versionNumber": number,
            "kernelId": kernel["id"],
            **{key: names for key, names in invalid.items() if names},
        }

    def version(self, body: Body) -> Body:
        kernel = self.kernels.get(f"{body.get('userName')}/{body.get('kernelSlug')}")
        if kernel is None:
            raise ApiError(403, "Permission 'kernels.get' was denied")

        # Kaggle's client 2.2.4 sends no label, and gets the latest version.
        label = body.get("versionLabel")
        if label and not self.ignore_version_label:
            if not re.fullmatch(r"v\d+", label) or int(label[1:]) not in kernel["versions"]:
                raise ApiError(404, "NotFound")
            return kernel["versions"][int(label[1:])]
        return kernel["versions"][max(kernel["versions"])]

    def get_kernel_session_status(self, body: Body) -> Any:
        version = self.version(body)
        version["last"] = step(version)
        failure = {"failureMessage": self.kernel_failure} if version["last"] == "ERROR" else {}
        return {"status": version["last"], **failure}

    def list_kernel_session_output(self, body: Body) -> Any:
        version = self.version(body)
        done = version["last"] in ("COMPLETE", "ERROR")
        names = sorted(version["files"]) if done else []
        start = int(body.get("pageToken") or 0)
        size = body.get("pageSize") or 20
        files = [
            {
                "fileName": name,
                "url": self.store(name.rsplit("/", 1)[-1], version["files"][name]),
            }
            for name in names[start : start + size]
        ]
        more = str(start + size) if start + size < len(names) else ""
        return {
            "files": files,
            "log": json.dumps(version["log"]) if done else "",
            "nextPageToken": more,
        }

    def list_kernels(self, body: Body) -> Any:
        kernels = [
            {
                "ref": ref,
                "title": ref.partition("/")[2],
                "lastRunTime": "2026-11-28T00:00:00.000Z",
                "enableGpu": kernel["versions"][max(kernel["versions"])]["gpu"],
            }
            for ref, kernel in self.kernels.items()
            if ref.startswith(f"{body['user']}/")
        ]
        return {"kernels": kernels[: body["pageSize"]]}

    def get_kernel(self, body: Body) -> Any:
        ref = f"{body['userName']}/{body['kernelSlug']}"
        version = self.version(body)
        request = version["request"]
        blob = {
            "source": request.get("text", ""),
            "language": request.get("language"),
            "slug": body["kernelSlug"],
        }
        metadata = {
            "id": 1,
            "ref": ref,
            "title": request.get("newTitle", ""),
            "machineShape": version["shape"],
            "currentVersionNumber": max(self.kernels[ref]["versions"]),
        }
        for key in PUSHED_METADATA:
            if request.get(key) is not None:
                metadata[key] = request[key]
        return {"blob": blob, "metadata": metadata}

    def get_accelerator_quota_statistics(self, _: Body) -> Any:
        def quota(used: int, total: int) -> Body:
            return {
                "timeUsed": f"{used}s",
                "timeReserved": "0s",
                "totalTimeAllowed": f"{total}s",
                "hasEverRun": True,
            }

        return {
            "quotaRefreshTime": "2026-11-28T00:00:00.000Z",
            "gpuQuota": quota(self.gpu_used_s, self.gpu_total_s),
            "tpuQuota": quota(0, 72000),
        }


class Datasets:
    """Uploads, and the datasets that are made of them."""

    def start_datasets(self) -> None:
        self.dataset_script = ["NOT_YET_PERSISTED", "BLOBS_RECEIVED", "READY"]
        self.datasets: dict[str, Body] = {}

    def start_upload(self, body: Body) -> Any:
        token = f"up{self.next_id()}"
        name = body.get("name") or body.get("fileName")
        self.uploads[token] = {"name": name, "size": body.get("contentLength", 0), "data": None}
        return {"token": token, "createUrl": f"{self.url}/_upload/{token}?signature=signed5ecret"}

    def start_blob_upload(self, body: Body) -> Any:
        return self.start_upload(body)

    def _uploaded(self, body: Body, prefix: str = "") -> dict[str, bytes]:
        """Return the uploaded files of a request by their paths."""
        contents = {}
        for file in body.get("files", []):
            upload = self.uploads.get(file.get("token", ""))
            if not upload or upload["data"] is None:
                raise ApiError(400, "Blob not uploaded")
            contents[prefix + upload["name"]] = upload["data"]
        for folder in body.get("directories", []):
            contents |= self._uploaded(folder, f"{prefix}{folder['name']}/")
        return contents

    def _dataset(self, body: Body, verb: str) -> Body:
        dataset = self.datasets.get(f"{body.get('ownerSlug')}/{body.get('datasetSlug')}")
        if dataset is None:
            raise ApiError(403, f"Permission 'datasets.{verb}' was denied")
        return dataset

    def get_dataset_status(self, body: Body) -> Any:
        dataset = self._dataset(body, "get")
        dataset["last"] = step(dataset)
        return {"status": dataset["last"]}

    def get_dataset(self, body: Body) -> Any:
        dataset = self._dataset(body, "get")
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        return {"id": 1, "ref": ref, "title": ref, "currentVersionNumber": len(dataset["versions"])}

    def create_dataset(self, body: Body) -> Any:
        ref = f"{body.get('ownerSlug')}/{body.get('slug')}"
        self.datasets[ref] = {
            "versions": [self._uploaded(body)],
            "script": list(self.dataset_script),
            "last": "",
            "private": body.get("isPrivate"),
        }
        url = "https://www.kaggle.com/datasets/" + ref
        return {"ref": "/datasets/" + ref, "url": url, "status": "ok", "error": ""}

    def create_dataset_version(self, body: Body) -> Any:
        dataset = self._dataset(body, "update")
        # Refused while another version is being processed.
        if dataset["last"] not in ("", "READY"):
            raise ApiError(403, "Permission 'datasets.update' was denied")
        dataset["versions"].append(self._uploaded(body.get("body", {})))
        dataset["script"] = list(self.dataset_script)
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        url = "https://www.kaggle.com/datasets/" + ref
        return {"ref": "/datasets/" + ref, "url": url, "status": "ok"}


def _has_kernelspec(text: str) -> bool:
    try:
        return bool(json.loads(text)["metadata"]["kernelspec"]["name"])
    except (KeyError, TypeError, ValueError):
        return False
