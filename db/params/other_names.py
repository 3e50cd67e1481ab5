"""What transformers, peft, LLaMA-Factory and axolotl call parameters of a fine-tune."""

OTHER_NAMES = {
    "model_name_or_path": "base_model",
    "dataset": "training_file",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "lora_r": "lora_rank",
    "lora_target": "lora_target_modules",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
}
