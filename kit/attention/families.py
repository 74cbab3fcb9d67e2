"""List what kit knows of families of encoders: which of them number positions from the padding id on."""

AFTER_PADDING = {  # families that number positions from the padding id on
    *(
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "roberta-prelayernorm",
        "camembert",
        "data2vec-text",
        "ibert",
    ),
    *("longformer", "luke", "mpnet", "xmod"),
}
