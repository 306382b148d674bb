import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from medreason.config import ConfigError
from medreason.core.overrides import override
from medreason.sweep.space import read_space, size
from support import composed


def test_hydras_sweep_syntax_becomes_distributions() -> None:
    space, shared = read_space(
        {
            "lora.r": "choice(8, 16)",
            "lora.alpha": "choice(1r, 2r)",
            "lora.rslora": "choice(true, false)",
            "lora.dropout": "interval(0, 0.1)",
            "optim.lr": "tag(log, interval(1e-5, 1e-3))",
            "optim.warmup_steps": "range(0, 9, step=4)",
            "trainer.accumulate": "tag(int, interval(1, 4))",
            "optim.decay": "linear",
        },
        [],
    )
    assert space == {
        "lora.r": CategoricalDistribution((8, 16)),
        "lora.alpha": CategoricalDistribution(("1r", "2r")),
        "lora.rslora": CategoricalDistribution((True, False)),
        "lora.dropout": FloatDistribution(0.0, 0.1),
        "optim.lr": FloatDistribution(1e-5, 1e-3, log=True),
        "optim.warmup_steps": IntDistribution(0, 8, step=4),
        "trainer.accumulate": IntDistribution(1, 4),
    }
    assert shared == ["optim.decay=linear"]


def test_the_command_line_narrows_fixes_and_adds() -> None:
    params = {"lora.r": "choice(8, 16)", "optim.lr": "interval(0.1, 0.2)"}
    space, shared = read_space(params, ["experiments=quickstart", "optim.lr=3e-4", "lora.r=4,8", "seed=1,2,3"])
    assert space == {"lora.r": CategoricalDistribution((4, 8)), "seed": CategoricalDistribution((1, 2, 3))}
    assert shared == ["optim.lr=3e-4", "experiments=quickstart"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("optim.lr=tag(log,interval(0,1))", "optim.lr: cannot search"),
        ("lora.r=range(4,4)", "the range is empty"),
        ("model=glob(*)", "use choice()"),
        ("optim.lr=interval(2,1)", "optim.lr: cannot search"),
    ],
)
def test_what_cannot_be_searched_is_named(entry: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r".*") as caught:
        read_space({}, [entry])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_syntax_is_named_with_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"lora.r=choice\(8,: Hydra cannot read this value"):
        read_space({"lora.r": "choice(8,"}, [])


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("lora.r", 32, 32),
        ("lora.rslora", True, True),
        ("optim.lr", 1.2345678901234e-05, 1.2345678901234e-05),
        ("lora.alpha", "0.5r", 8.0),
        ("data.path", "a b,c=1's.jsonl", "a b,c=1's.jsonl"),
    ],
)
def test_a_trials_value_arrives_in_its_run_as_it_was(name: str, value: object, found: object) -> None:
    config = composed("data=local", "data.path=x.jsonl", override(name, value))
    group, _, setting = name.partition(".")
    assert getattr(getattr(config, group), setting) == found


def test_a_finite_space_knows_its_size() -> None:
    space, _ = read_space({"lora.r": "8,16,32", "optim.warmup_steps": "range(0,9,step=4)"}, [])
    assert size(space) == 9
    assert size({"lr": FloatDistribution(0, 1)}) == float("inf")
