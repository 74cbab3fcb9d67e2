"""The competition, as constants: file names, column names, classes. Nobody else spells "winner_model_a".

Source: the data page of kaggle.com/competitions/llm-classification-finetuning.
"""

COMPETITION = "llm-classification-finetuning"
TRAIN_FILE, TEST_FILE, SAMPLE_FILE = "train.csv", "test.csv", "sample_submission.csv"
TRUTH_FILE = "truth.csv"  # kit's own: the labels of a test file, where they are known
BAYES_FILE = (
    "bayes.csv"  # kit's own: the true probabilities of made-up rows, whose loss no model can beat
)

ID = "id"
MODELS = ("model_a", "model_b")
PROMPT = "prompt"
RESPONSES = ("response_a", "response_b")
TEXTS = (PROMPT, *RESPONSES)
CLASSES = ("winner_model_a", "winner_model_b", "winner_tie")  # label 0, 1, 2
TRAIN_CLASS_COUNTS = (20_064, 19_652, 17_761)  # rows of each class in Kaggle's train.csv
SWAP = (1, 0, 2)  # where each class goes when answers A and B change places

TRAIN_COLUMNS = (ID, *MODELS, *TEXTS, *CLASSES)
TEST_COLUMNS = (ID, *TEXTS)
PREDICTION_COLUMNS = (ID, *CLASSES)
LABEL = "label"  # 0, 1 or 2: the index into CLASSES
GROUP = "group"  # of processed rows: those of one normalised prompt share a number
EXTRA = "extra"  # of processed rows: from an extra file, trained on and never scored
SOFT_LABELS = tuple(
    f"soft_label_{name}" for name in CLASSES
)  # optional: probabilities to train on, not on the label
WEIGHT = "weight"  # optional: how much a row counts in training
HOLDOUT = "holdout"  # the name of the validation share, beside folds 0, 1, ...
