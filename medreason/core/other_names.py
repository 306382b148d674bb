"""Settings by the names that other tools give them -> ours, ready to be pasted.

    lr=1e-4        lr: no such setting; here it is optim.lr: write optim.lr=1e-4
    --lora.r 32    --lora.r: settings have no dashes here: write lora.r=32

The tools: Axolotl, LLaMA-Factory, TRL and transformers, Unsloth, lightning-hydra-template, lm-evaluation-harness.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from medreason.core.overrides import DATA_FILES, printable, shell_word

# name -> ours: of training first, then of a command that asks a run's model; the first that a command has counts
NAMES = {
    **dict.fromkeys(("lr", "learning_rate", "learningrate", "optimizer.lr", "optimizer.learning_rate", "model.lr",
                     "model.optimizer.lr"), ("optim.lr",)),
    **dict.fromkeys(("batch_size", "bs", "micro_batch_size", "per_device_train_batch_size", "train_batch_size",
                     "data.batch_size", "per_device_batch_size", "global_batch_size"),
                    ("trainer.rows_per_batch", "batch")),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), ("trainer.answer_batch", "batch")),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "grad_accumulation_steps", "accumulation_steps",
                     "accumulate_grad_batches", "trainer.accumulate_grad_batches"), ("trainer.accumulate",)),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs", "num_train_epochs", "max_epochs"),
                    ("trainer.max_epochs",)),
    **dict.fromkeys(("max_steps", "steps", "max_train_steps", "num_train_steps"), ("trainer.max_steps",)),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_length", "sequence_len", "sequence_length", "seq_len",
                     "seq_length", "cutoff_len", "model_max_length", "block_size", "context_length"),
                    ("data.row_tokens",)),
    **dict.fromkeys(("output_dir", "out_dir", "save_dir", "output_path"), ("hydra.run.dir", "output")),
    **dict.fromkeys(("lora_r", "lora_rank", "rank", "r", "peft.r"), ("lora.r",)),
    **dict.fromkeys(("lora_alpha", "alpha"), ("lora.alpha",)),
    **dict.fromkeys(("lora_dropout", "dropout"), ("lora.dropout",)),
    **dict.fromkeys(("lora_target_modules", "lora_target", "target_modules"), ("lora.target_modules",)),
    **dict.fromkeys(("use_rslora", "lora_use_rslora", "peft_use_rslora"), ("lora.rslora",)),
    **dict.fromkeys(("use_dora", "lora_use_dora", "peft_use_dora"), ("lora.dora",)),
    **dict.fromkeys(("loraplus_lr_ratio", "loraplus_ratio"), ("optim.loraplus_ratio",)),
    **dict.fromkeys(("warmup_ratio", "warmup_steps", "num_warmup_steps"), ("optim.warmup_steps",)),
    **dict.fromkeys(("weight_decay", "wd"), ("optim.weight_decay",)),
    **dict.fromkeys(("lr_scheduler", "lr_scheduler_type", "scheduler"), ("optim.decay",)),
    **dict.fromkeys(("max_grad_norm", "gradient_clipping", "gradient_clip_val", "trainer.gradient_clip_val"),
                    ("optim.max_grad_norm",)),
    **dict.fromkeys(("adam_epsilon", "adam_eps"), ("optim.eps",)),
    **dict.fromkeys(("random_seed", "random_state", "data_seed"), ("seed",)),
    **dict.fromkeys(("base_model", "model_name", "model_name_or_path", "model_path", "model_id", "pretrained",
                     "pretrained_model_name_or_path", "model.name", "model.model_name_or_path"),
                    ("model.path", "run", "weights")),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "dataset_path", "data_path", "train_file", "train_data",
                     "data_files", "data.dataset"), ("data.path",)),
    **dict.fromkeys(("val_set_size", "val_size", "test_size", "validation_split_percentage", "eval_split"),
                    ("data.validation_share",)),
    **dict.fromkeys(("max_eval_samples", "max_val_samples"), ("data.max_validation_rows", "limit")),
    **dict.fromkeys(("save_steps", "save_every", "checkpoint_every"), ("trainer.checkpoint_every_steps",)),
    **dict.fromkeys(("eval_steps", "eval_every", "val_check_interval", "trainer.val_check_interval"),
                    ("trainer.validate_every_steps",)),
    **dict.fromkeys(("early_stopping_patience", "patience"), ("trainer.patience",)),
    **dict.fromkeys(("num_gpus", "n_gpus", "num_processes", "nproc_per_node", "gpus", "devices"),
                    ("trainer.devices",)),
    **dict.fromkeys(("resume_from_checkpoint", "ckpt_path", "auto_resume_from_checkpoints"), ("ckpt",)),
    **dict.fromkeys(("metric_for_best_model", "optimized_metric"), ("monitor",)),
    **dict.fromkeys(("experiment", "preset", "recipe"), ("experiments",)),
    **dict.fromkeys(("n_trials", "num_trials"), ("hydra.sweeper.trials",)),
    **dict.fromkeys(("sweep", "hparams_search"), ("sweeps",)),
    **dict.fromkeys(("report_to", "log_with"), ("logger",)),
    **dict.fromkeys(("wandb_project", "project", "project_name"), ("logger.project",)),
    **dict.fromkeys(("run_name", "wandb_name", "wandb_run_name"), ("logger.name",)),
    **dict.fromkeys(("chat_template", "template"), ("model.chat_template",)),
    **dict.fromkeys(("tasks", "task", "eval_dataset"), ("benchmarks",)),
    **dict.fromkeys(("max_tokens", "max_gen_toks"), ("max_new_tokens",)),
    **dict.fromkeys(("num_samples", "n", "repeats"), ("samples",)),
    **dict.fromkeys(("model", "checkpoint_path", "adapter_name_or_path", "adapter", "peft"), ("run",)),
    **dict.fromkeys(("push_to_hub_model_id", "hub_model_id", "push_to_hub", "repo_id"), ("push",)),
    **dict.fromkeys(("quantization_method", "quant", "outtype"), ("quantization",)),
}  # fmt: skip

# what a switch of theirs is here, where it is on
SWITCHES = {
    "bf16": "trainer.precision=bf16-mixed",
    "fp16": "trainer.precision=16-mixed",
    "load_in_4bit": "model.precision=nf4",
    "load_in_8bit": "model.precision=int8",
    "fp8": "model=mistral_7b_fast_fp8",
    "packing": "data.packing=best_fit",
    "sample_packing": "data.packing=best_fit",
    "neat_packing": "data.packing=best_fit",
    "gradient_checkpointing": "trainer.recompute=full",
    "use_gradient_checkpointing": "trainer.recompute=unsloth",
}

# theirs with a value that has a name of its own here
VALUES = {
    ("report_to", "none"): "logger=csv",
    ("report_to", "all"): "logger=wandb",
    ("resume_from_checkpoint", "true"): "resume=last",
    ("auto_resume_from_checkpoints", "true"): "resume=last",
    ("quantization_bit", "4"): "model.precision=nf4",
    ("quantization_bit", "8"): "model.precision=int8",
    ("optimizer", "adamw_8bit"): "optim=adamw_8bit",
    ("optimizer", "adamw_torch"): "optim=adamw",
    ("optimizer", "adamw_torch_fused"): "optim=adamw",
    ("optimizer", "adamw"): "optim=adamw",
}

# theirs with nothing like it here, and what there is
NOTHING = {
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"),
                    "each GPU holds the whole model; several GPUs: trainer=ddp trainer.devices=2"),
    **dict.fromkeys(("logging_steps", "log_every_n_steps", "logging_strategy"),
                    "every optimizer step is logged; leave it out"),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "save_strategy"),
                    "see trainer.validate_every_steps and trainer.checkpoint_every_steps"),
    **dict.fromkeys(("save_total_limit", "load_best_model_at_end"),
                    "a run keeps its best and its last checkpoint; leave it out"),
    **dict.fromkeys(("flash_attention", "flash_attn", "attn_implementation", "xformers_attention"),
                    "attention is chosen by the hardware; leave it out"),
    **dict.fromkeys(("stage", "do_train", "finetuning_type", "adapter", "peft", "use_peft"),
                    "a run always trains LoRA on supervised rows; leave it out"),
    **dict.fromkeys(("train_on_inputs", "mask_prompt", "completion_only_loss"),
                    "the loss is that of answers alone; leave it out"),
    **dict.fromkeys(("tf32", "torch_compile", "group_by_length", "dataloader_num_workers", "num_workers"),
                    "there is nothing to choose; leave it out"),
    **dict.fromkeys(("num_fewshot",), "questions are asked without examples; leave it out"),
    **dict.fromkeys(("quantization_bit",), "see model.precision: nf4, int8, half, fp8, bf16"),
    **dict.fromkeys(("optimizer", "optim_type"), "see optim: adamw, adamw_8bit, loraplus"),
    **dict.fromkeys(("precision", "mixed_precision", "dtype", "torch_dtype"),
                    "trainer.precision is that of the arithmetic, model.precision that of the frozen base"),
}  # fmt: skip

# what our settings count that theirs of that name may not
COUNTS = {
    "trainer.rows_per_batch": "packed rows, each of data.row_tokens tokens",
    "data.validation_share": "a share of the rows",
}
SETTING_FILES = (".yaml", ".yml", ".toml")
OFF = ("false", "no", "off", "0", "none", "null")
CONFIG = ("config", "config_file", "cfg", "yaml", "settings", "c", "f", "")


def foreign(arguments: Sequence[str], options: Iterable[str], keys: Collection[str]) -> str | None:
    """A line on the first word of a command line that is another tool's, None where there is none.

    `options` are those that begin with a dash and are known, `keys` the command's own settings and groups.
    """
    for word, name, value in settings_in(arguments, list(options), keys):
        if word.startswith("-"):
            return dashed(word, name, value, keys)
        if line := answer(name.lstrip("+~"), value, keys):
            return line
    return None


def settings_in(
    arguments: Sequence[str], options: Sequence[str], keys: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    """Word, name and value of what may be settings, with dashes (`--lr 1e-4`, `--lr=1e-4`) or without."""
    taken = -1
    for at, word in enumerate(arguments):
        begin, equals, value = word.partition("=")
        if at == taken:
            continue
        if not word.startswith("-"):
            yield word, begin, value
            continue
        if begin in options:
            if not (equals and begin.lstrip("-") in keys):  # --run=DIR: Hydra's takes no value, ours does
                continue
        elif sum(one.startswith(begin) for one in options) == 1:  # argparse takes beginnings too
            continue
        after = arguments[at + 1] if at + 1 < len(arguments) else ""
        if not equals and after and not after.startswith("--") and "=" not in after:
            value, taken = after, at + 1
        yield begin, begin.lstrip("-").replace("-", "_"), value


def dashed(word: str, name: str, value: str, keys: Collection[str]) -> str:
    """A line on a setting that was written as an option."""
    if name in keys:
        return f"{printable(word)}: settings have no dashes here: write {pasted(name, value)}"
    told = answer(name, value, keys)
    return told.replace(f"{name}:", f"{printable(word)}:", 1) if told else (
        f"{printable(word)}: no such option; settings are written NAME=VALUE, see --help"
    )  # fmt: skip


def answer(name: str, value: str, keys: Collection[str]) -> str | None:
    """A line on a setting of another tool's, None for any other name."""
    none = f"{printable(name)}: no such setting"
    file = value if name in CONFIG else name if not value else ""
    if file.endswith(SETTING_FILES):
        return (
            f"{printable(file)}: a file of settings is not read from here; put it under experiments/ and write "
            "experiments=NAME, or name its settings: lora.r=32"
        )
    if name in ("model", "data") and name in keys and f"{name}.path" in keys:
        return group_as_path(name, value)
    if name in keys:
        return None
    lower = value.strip().lower()
    known = [ours for ours in NAMES.get(name, ()) if ours in keys or (ours == "hydra.run.dir" and "trainer" in keys)]
    word = VALUES.get((name, lower)) or (SWITCHES.get(name) if lower not in OFF else None)
    if word and word.partition("=")[0] in keys:
        return f"{none}; here it is {word.partition('=')[0]}: write {word}"
    if name in SWITCHES and "trainer" in keys:
        return f"{none}; leave it out, or see {SWITCHES[name].partition('=')[0]}"
    if known:
        counted = f" ({COUNTS[known[0]]})" if known[0] in COUNTS else ""
        return f"{none}; here it is {known[0]}{counted}: write {pasted(known[0], value)}"
    if name in NOTHING and ("trainer" in keys or name == "num_fewshot"):
        return f"{none}: {NOTHING[name]}"
    if not value and "/" in name and "run" in keys:
        return f"{printable(name)}: no setting; write {pasted('run', name)}"
    own = [key for key in keys if key.endswith(f".{name}")]
    return f"{none}; here it is {own[0]}: write {pasted(own[0], value)}" if len(own) == 1 else None


def group_as_path(name: str, value: str) -> str | None:
    """A line on a group that was given a path or a hub name instead of one of its choices."""
    given = value.strip("'\"")
    if "/" not in given and not given.lower().endswith(DATA_FILES):
        return None
    more = "data=local " if name == "data" and given.lower().endswith(DATA_FILES) else ""
    return f"{name}={printable(given)}: no such choice; a path is written {more}{shell_word(f'{name}.path={value}')}"


def pasted(name: str, value: str) -> str:
    """A setting as a shell takes it; VALUE where none was given."""
    return shell_word(f"{name}={value.strip()}") if value.strip() else f"{name}=VALUE"
