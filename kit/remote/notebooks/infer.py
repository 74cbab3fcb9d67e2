"""Writes submission.csv for whatever test set is there, from the runs that are attached."""

if __name__ == "__main__":
    from kit.remote.session import Session
    from kit.remote.session_infer import infer

    infer(Session.open())
