"""Define the competition's file names, column names and classes, so that they are spelled once.

Source: the data page of kaggle.com/competitions/llm-classification-finetuning.
"""

COMPETITION = "llm-classification-finetuning"
TRAIN_FILE = "train.csv"
TEST_FILE = "test.csv"
SAMPLE_FILE = "sample_submission.csv"

# Files of kit's own: the labels of a test file, where they are known, and the true probabilities
# of generated rows, whose log loss no model can beat.
TRUTH_FILE = "truth.csv"
BAYES_FILE = "bayes.csv"

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

# No and yes in turn, as pandas writes columns of int, float and bool, in lower case; spreadsheets
# write TRUE and FALSE.
FLAGS = ("0", "1", "0.0", "1.0", "false", "true")

# Columns of processed rows: the index into CLASSES; a number shared by all rows of one normalised
# prompt; whether the row is from an extra file, which is trained on and never scored.
LABEL = "label"
GROUP = "group"
EXTRA = "extra"

# Optional columns: probabilities to train on in place of the label, and how much a row counts.
SOFT_LABELS = tuple(f"soft_label_{name}" for name in CLASSES)
WEIGHT = "weight"

# The name of the validation share, next to the folds 0, 1, ...
HOLDOUT = "holdout"
