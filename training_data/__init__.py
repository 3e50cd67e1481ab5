"""Training data: formats, chat templates, splits, token counts, the table of hyperparameters. No torch."""
