"""What `medreason` can be told to do, in one place for its overview, each command's help and the Tab key."""

# a module of this package that runs as a command -> what it does; the order is that of a project
COMMANDS = {
    "data": "show what training will see: rows read, rejected, repeated",
    "train": "fine-tune with LoRA; with --multirun or sweeps=NAME, a sweep",
    "runs": "list runs and sweeps; clean=list names what can go",
    "report": "a run or a sweep as one page: DIR/report.html",
    "dashboard": "lay out a W&B workspace for runs with logger=wandb",
    "evaluate": "how well a run's model, or any other, answers benchmarks",
    "verdict": "did fine-tuning help: better, worse or the same as its base",
    "sample": "a run's own right answers to training questions, as rows to learn",
    "chat": "ask a run's model, in the terminal or (page=true) on a web page",
    "export": "a run's model in a folder of its own: adapter, merged, gguf",
    "serve": "a run's model behind an OpenAI-compatible endpoint",
    "completion": "a script for bash, zsh or fish: the Tab key completes settings",
}
