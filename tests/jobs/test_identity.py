"""What a stage learns from, key by key; the table of expectations is written beside the one in the code, not made of it."""

import inspect
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import conf
from bdg.commands.chain import resolved
from bdg.commands.request import Request
from datamodules.restoration import RestorationData
from jobs import identity as declared
from jobs.identity import definition, differences, identity, undeclared

CONF = Path(conf.__file__).parent
GENERATION, BRIDGING, RESTORATION = STAGES = ("generation", "bridging", "restoration")
AFTER_GENERATION = (BRIDGING, RESTORATION)
Config = dict[str, Any]


def composed(*overrides: str) -> Config:
    config = Request("train", ("++data.root=photographs", *overrides)).compose()
    config.run_folder = ""
    return resolved(config)


@pytest.fixture(scope="module")
def stages() -> dict[str, Config]:
    """The three configs of the defaults."""
    return {stage: composed(f"stage={stage}") for stage in STAGES}


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or (key and not value):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in leaves(inner, f"{key}.{name}".lstrip(".")).items()}


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    for key, value in changes.items():
        config = with_value(config, key.split("."), value)
    return config


def with_value(config: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    return {**(config or {}), first: with_value(config.get(first, {}), rest, value) if rest else value}


def name(config: Config) -> str:
    return identity(definition(config), None, "data")


def differing(stages: dict[str, Config], changes: Mapping[str, Any], **before: Any) -> tuple[str, ...]:
    """The stages whose identity these changes change."""
    of = {stage: changed(config, before) for stage, config in stages.items()}
    return tuple(stage for stage in STAGES if name(of[stage]) != name(changed(of[stage], changes)))


# --- which stage reads what ---

READ: dict[tuple[str, ...], str] = {
    STAGES: """
        seed network diffusion._target_ diffusion.curves diffusion.time diffusion.schedule
        stage._target_ stage.condition stage.optimizer stage.scheduler stage.weights
        data._target_ data.batch_size data.crop data.flip data.quotas data.reader data.seed data.window
        trainer._target_ trainer.max_steps trainer.precision trainer.gradient_clip_val callbacks.ema""",
    AFTER_GENERATION: "degradation data.degradations glcm stage.terms.bridge",
    (GENERATION, BRIDGING): "stage.terms.noise",
    (BRIDGING,): "stage.terms.residual stage.terms.classify",
    (RESTORATION,): "stage.terms.restored stage.terms.negative diffusion.estimate",
    (): """
        stage.terms.joint stage.name stage.curves stage.estimate stage.lambda stage.anchor
        data._convert_ data.root data.shards data.val_shards data.test_shards data.num_workers data.on_error data.cache
        data.cache_gb data.val_crop data.val_severities
        trainer.accelerator trainer.devices trainer.num_nodes trainer.val_check_interval trainer.check_val_every_n_epoch
        trainer.num_sanity_val_steps trainer.log_every_n_steps trainer.use_distributed_sampler trainer.plugins
        trainer.enable_model_summary trainer.default_root_dir
        callbacks.inherit callbacks.checkpoint callbacks.generators callbacks.preempt callbacks.guard callbacks.heartbeat
        callbacks.throughput callbacks.progress callbacks.measures callbacks.levels
        callbacks.features callbacks.pictures
        logger sampler protocol cluster stages max_steps only inherit project root run_folder ckpt_path trust identity json""",
}
EXPECTED = {prefix: names for names, prefixes in READ.items() for prefix in prefixes.split()}
NUMBERS = ("stage.weights", "data.batch_size", "trainer.devices", "trainer.num_nodes", "data.num_workers")
"""Keys that are calculated with."""
ANY = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.lists(st.integers())
)


def expected(stages: dict[str, Config]) -> dict[str, tuple[str, ...]]:
    """Key -> the stages that read it, for the keys that all stages have."""
    keys = {**leaves(stages[GENERATION]), **leaves(stages[BRIDGING])}
    return {key: names for key in keys for prefix, names in EXPECTED.items() if is_in(key, prefix)}


def is_number(key: str) -> bool:
    return any(is_in(key, prefix) for prefix in NUMBERS)


def is_in(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def test_changing_a_key_changes_exactly_the_stages_that_read_it(stages: dict[str, Config]) -> None:
    found = {key: differing(stages, {key: "other" if not is_number(key) else 77}) for key in expected(stages)}

    assert found == expected(stages)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_so_does_any_value_of_it(stages: dict[str, Config], data: st.DataObject) -> None:
    key, names = data.draw(st.sampled_from([*expected(stages).items()]))
    old = [leaves(config).get(key) for config in stages.values()]
    new = data.draw(st.integers(1, 99) if is_number(key) else ANY)

    if new not in old:
        assert differing(stages, {key: new}) == names


def test_the_expectations_are_of_all_keys(stages: dict[str, Config]) -> None:
    missing = {key for config in stages.values() for key in leaves(config)} - expected(stages).keys()

    assert missing == {"data.micro_batch"}  # below, with devices


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("network=S", STAGES),
        ("max_steps.bridging=7", (BRIDGING,)),
        ("stage.lambda=0.05", AFTER_GENERATION),
        ("stage.anchor=1", (RESTORATION,)),
        ("degradation=rain", AFTER_GENERATION),
        ("cluster.devices=2", ()),
        ("stage.optimizer.lr=8.0e-5", ()),
        ("+mykey=1", STAGES),
    ],
)
def test_an_override_changes_exactly_the_stages_that_read_it(
    override: str, names: tuple[str, ...], stages: dict[str, Config]
) -> None:
    assert (
        tuple(stage for stage in STAGES if name(composed(f"stage={stage}", override)) != name(stages[stage])) == names
    )


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_keys_does_not_count(stages: dict[str, Config], rng: random.Random) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        keys = [*value]
        if keys != ["rain", "haze", "blur", "noise", "low_light"]:
            rng.shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}

    for config in stages.values():
        assert name(shuffled(config)) == name(config)


@pytest.mark.parametrize(
    ("key", "one", "names"),
    [
        ("degradation", {"rain": {"_target_": "Rain"}, "blur": {"_target_": "Blur"}}, AFTER_GENERATION),
        ("degradation.mix.parts", {"rain": {"_target_": "Rain"}, "blur": {"_target_": "Blur"}}, AFTER_GENERATION),
        ("data.quotas", {"rain": 1, "blur": 2}, STAGES),
        ("degradation.rain", {"_target_": "Rain", "tint": 0}, ()),
    ],
)
def test_the_order_of_degradations_and_quotas_counts(
    key: str, one: dict[str, Any], names: tuple[str, ...], stages: dict[str, Config]
) -> None:
    """It fixes the labels, the parts' turns, and who is dealt which image."""
    assert differing(stages, {key: dict(reversed(one.items()))}, **{key: one}) == names


def test_a_quota_of_none_does_not_count(stages: dict[str, Config]) -> None:
    assert differing(stages, {"data.quotas": {"rain": 1, "blur": 0}}, **{"data.quotas": {"rain": 1}}) == ()


def test_quotas_choose_the_clean_images_also_by_what_can_be_made(stages: dict[str, Config]) -> None:
    quotas = {"data.quotas": {"rain": 1}}

    assert differing(stages, {"data.degradations.rain": None}, **quotas) == STAGES
    assert differing(stages, {"data.degradations.rain.severity": 3}, **quotas) == AFTER_GENERATION


# --- what a stage looks at follows from what is in it ---


@pytest.mark.parametrize(
    ("stage", "before", "degradation", "glcm", "estimate"),
    [
        (GENERATION, {}, False, False, False),
        (GENERATION, {"stage.condition": "x_lq"}, True, False, False),
        (GENERATION, {"diffusion.curves": ["beta", "delta"]}, True, False, False),
        (GENERATION, {"stage.weights.residual": 1}, True, False, False),
        (GENERATION, {"stage.weights.negative": 1}, True, True, False),
        (GENERATION, {"stage.terms.noise._target_": "mine.Loss"}, True, True, True),
        (GENERATION, {"stage._target_": "mine.Stage"}, True, True, True),
        (GENERATION, {"data._target_": "mine.Data"}, True, True, True),
        (BRIDGING, {}, True, True, False),
        (BRIDGING, {"stage.weights.bridge": 0}, True, True, False),
        (BRIDGING, {"stage.weights.bridge": 0, "stage.weights.classify": 0}, True, False, False),
        (BRIDGING, {"stage.weights.restored": 1}, True, True, True),
        (RESTORATION, {}, True, True, True),
        (RESTORATION, {"stage.weights.bridge": 0, "stage.weights.negative": 0.0}, True, False, True),
    ],
)
def test_a_stage_depends_on_what_its_parts_look_at(
    stage: str, before: dict[str, Any], degradation: bool, glcm: bool, estimate: bool, stages: dict[str, Config]
) -> None:
    changes = [{"degradation.rain.severity": 2}, {"glcm.levels": 7}, {"diffusion.estimate": "other"}]
    found = [stage in differing(stages, change, **before) for change in changes]

    assert found == [degradation, glcm, estimate]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 8))
@settings(deadline=None)
def test_a_step_in_parts_counts_as_the_images_that_a_contrastive_loss_compares(
    stages: dict[str, Config], parts: int, devices: int, nodes: int, times: int, micro: int
) -> None:
    batch = parts * micro * devices * nodes
    data = SimpleNamespace(batch_size=batch, micro_batch=micro * times)
    place = {"trainer.devices": devices, "trainer.num_nodes": nodes}
    if parts % times == 0 or times > parts:
        accumulated = RestorationData.accumulation(data, devices * nodes)  # type: ignore[arg-type]
        found = changed(stages[BRIDGING], {"data.batch_size": batch, "data.micro_batch": micro * times, **place})
        assert definition(found)["contrast_images"] == batch / accumulated


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"data.micro_batch": 5}, AFTER_GENERATION),
        ({"data.micro_batch": 20}, ()),
        ({"data.micro_batch": 10, "trainer.devices": 2}, ()),
        ({"data.micro_batch": 5, "trainer.devices": 2, "trainer.num_nodes": 2}, ()),
        ({"data.micro_batch": 5, "trainer.devices": [0, 1, 2, 3]}, ()),
        ({"trainer.devices": "auto"}, ()),
    ],
)
def test_devices_and_parts_count_where_they_change_the_negatives(
    changes: dict[str, Any], names: tuple[str, ...], stages: dict[str, Config]
) -> None:
    assert differing(stages, changes) == names


def test_without_contrastive_losses_parts_do_not_count(stages: dict[str, Config]) -> None:
    off = {"stage.weights.bridge": 0, "stage.weights.negative": 0}

    assert differing(stages, {"data.micro_batch": 5}, **off) == ()


def test_negatives_of_an_unknown_number_of_devices_are_refused(stages: dict[str, Config]) -> None:
    unknown = {"trainer.devices": "auto", "data.micro_batch": 5}

    assert name(changed(stages[GENERATION], unknown)) == name(stages[GENERATION])
    with pytest.raises(
        ValueError, match=r"trainer\.devices=auto: with data\.micro_batch=5 .* give cluster.devices=NUMBER"
    ):
        name(changed(stages[BRIDGING], unknown))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"data.num_workers": 3}, STAGES),
        ({"data.micro_batch": 5}, STAGES),
        ({"trainer.devices": 2}, STAGES),
        ({"trainer.devices": 1, "trainer.num_nodes": 2}, STAGES),
    ],
)
def test_who_reads_which_shards_counts_where_they_are_read_forwards(
    changes: dict[str, Any], names: tuple[str, ...], stages: dict[str, Config]
) -> None:
    assert differing(stages, changes, **{"data.reader": "stream"}) == names


def test_two_nodes_of_one_device_read_as_one_node_of_two(stages: dict[str, Config]) -> None:
    before = {"data.reader": "stream", "trainer.devices": 2}

    assert differing(stages, {"trainer.devices": 1, "trainer.num_nodes": 2}, **before) == ()


# --- every key is declared ---


def groups() -> list[str]:
    """The config groups of train.yaml, but for experiments."""
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    return [str(group) for entry in defaults if entry != "_self_" for group in entry if group != "experiment"]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_key_of_every_experiment_is_declared(experiment: str) -> None:
    generation = composed(f"experiment={experiment}")
    others = (
        composed(f"experiment={experiment}", f"stage={stage}") for stage in generation["stages"] if stage != GENERATION
    )

    assert [key for config in (generation, *others) for key in undeclared(config)] == []


@pytest.mark.parametrize("turn", range(max(len(options(group)) for group in groups() if group != "degradation")))
def test_every_key_of_every_choice_is_declared(turn: int) -> None:
    chosen = {group: options(group)[turn % len(options(group))] for group in groups()}
    chosen["degradation"] = f"[{','.join(options('degradation'))}]"

    words = [f"{group}={choice}" for group, choice in chosen.items()]

    assert undeclared(composed(*words, f"++max_steps.{chosen['stage']}=1")) == []


@pytest.mark.parametrize("key", ["mykey", "data.mykey", "callbacks.mine._target_", "trainer.max_time", "seeds"])
def test_a_key_that_nobody_declared_is_found_and_counts_in_every_stage(key: str, stages: dict[str, Config]) -> None:
    assert [undeclared(changed(config, {key: "1"})) for config in stages.values()] == [[key]] * 3
    assert differing(stages, {key: "1"}) == STAGES


def test_nothing_is_declared_twice_or_for_nothing(stages: dict[str, Config]) -> None:
    prefixes = [*declared.EVERY_STAGE, *declared.BY_RULE, *declared.NO_STAGE, *sum(declared.SOME_STAGES.values(), ())]
    keys = {key for config in stages.values() for key in leaves(config)}
    of_trainer = {f"trainer.{argument}" for argument in inspect.signature(lightning.Trainer).parameters}

    assert sorted(prefixes) == sorted(set(prefixes))
    assert [p for p in prefixes if p not in of_trainer and not any(is_in(key, p) for key in keys)] == []


def test_the_classes_of_the_package_are_known(stages: dict[str, Config]) -> None:
    terms = {term["_target_"] for term in stages[BRIDGING]["stage"]["terms"].values()}
    classes = {config["stage"]["_target_"] for config in stages.values()} | terms
    classes |= {stages[BRIDGING][part]["_target_"] for part in ("diffusion", "data")}

    assert declared.READ_BY.keys() == classes


# --- names ---


def test_identity_depends_on_definition_parent_and_data() -> None:
    ours = identity({"seed": 0}, None, "data")

    assert ours == identity({"seed": 0}, None, "data")
    others = [identity({"seed": 1}, None, "data"), identity({"seed": 0}, "p", "data"), identity({"seed": 0}, None, "d")]
    assert len({ours, *others}) == 4


def test_one_is_one_however_it_is_written() -> None:
    assert identity({"stage.lambda": 1}, None, "data") == identity({"stage.lambda": 1.0}, None, "data")
    assert identity({"flip": 1}, None, "data") != identity({"flip": True}, None, "data")


def test_differences_name_the_keys() -> None:
    assert differences({"a": {"b": 1, "c": {}}, "d": [1]}, {"a": {"b": 2, "c": {}}, "d": [1]}) == ["a.b: 1 and 2"]
    assert differences({"a": 1}, {}) == ["a: 1 and missing"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []
