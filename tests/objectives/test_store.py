"""What a score step holds: by what the objective needs, and what an update accepts."""

import pytest
from command_line import TINY, given, stamps, vppo

from pipelines.config import settings
from pipelines.disk.artifacts import check
from pipelines.disk.records import SCORES, STATISTICS, Scored, Statistics, read_rows, read_scores, write_rows
from pipelines.errors import UserError
from pipelines.objectives.table import OBJECTIVES, STORES, measured_by, needs, stored
from pipelines.score import scoring
from pipelines.score.stage import is_watched
from pipelines.watch import Silent

FEW = given(
    *TINY, "score.looks=1", "checkpoint.every=2", "checkpoint.validation_samples=0", "eval.benchmarks=[]", "run.steps=3"
)


def test_auto_is_the_least_that_serves():
    for name in OBJECTIVES:
        config = settings.load(None, [f"update.objective={name}"])
        found, wanted = stored(config), needs(config) - {"roles"}
        assert wanted <= STORES[found]
        assert not any(wanted <= holds < STORES[found] for holds in STORES.values())
    assert stored(settings.load(None, ["update.objective=mine:terms"])) == "all"
    assert stored(settings.load(None, ["update.objective=dapo", "score.store=all"])) == "all"


@pytest.fixture
def counted(policy, monkeypatch):
    """How often the model reads, and an image is perturbed."""
    calls = {"passes": 0, "perturbed": 0}
    read, perturb = type(policy).hidden_states, scoring.perturb

    def hidden_states(self, rows):
        calls["passes"] += 1
        return read(self, rows)

    def perturbing(*arguments, **settings):
        calls["perturbed"] += 1
        return perturb(*arguments, **settings)

    monkeypatch.setattr(type(policy), "hidden_states", hidden_states)
    monkeypatch.setattr(scoring, "perturb", perturbing)
    return calls


@pytest.mark.parametrize(
    ("objective", "passes", "perturbed"),
    [("dapo", 1, 0), ("grpo", 1, 0), ("vppo-tgf", 2, 8), ("vppo", 2, 8)],  # 4 to score, 4 to show
)
def test_dapo_reads_once_and_perturbs_nothing(
    configure, rollouts, table, policy, scores, counted, tmp_path, objective, passes, perturbed
):
    config = configure(f"update.objective={objective}")
    metrics = scoring.score(config, 1, rollouts, table, policy, tmp_path, Silent())
    assert counted == {"passes": passes, "perturbed": perturbed}
    assert ("perception_mean" in metrics) == (perturbed > 0)
    rows = read_scores(tmp_path, 1)
    for row, full in zip(rows, scores, strict=True):
        assert (row.old_logp, row.entropy) == (full.old_logp, full.entropy)
        if not perturbed:
            assert row.perception == row.keep == [[], [], [], []]
            assert row.dependency == []
    assert (tmp_path / "looks.parquet").exists() == (perturbed > 0)


def test_views_are_kept_beside_the_same_scores(configure, rollouts, table, policy, scores, tmp_path):
    config = configure("score.store=views")
    scoring.score(config, 1, rollouts, table, policy, tmp_path, Silent())
    rows = read_scores(tmp_path, 1)
    assert [row.perception for row in rows] == [row.perception for row in scores]
    for row in rows:
        found = row.statistics
        assert found.kl == row.perception  # the estimator is exact KL
        assert found.logp == row.old_logp  # this step's own responses
        assert all(0 <= j < 0.7 for response in found.jsd for j in response)
        assert [len(r) for r in found.entropy_perturbed] == [len(r) for r in row.old_logp]
        assert found.image_similarity == found.layer_similarity == [[], [], [], []]


def test_columns_hold_all_or_nothing(rollouts, scores, tmp_path):
    folder, sampled = tmp_path / "score", tmp_path / "rollout"
    folder.mkdir()
    sampled.mkdir()
    write_rows(sampled / "rollouts.parquet", type(rollouts[0]), rollouts)
    table = [Scored(**{**vars(row), "perception": [[], [], [], []]}) for row in scores]
    write_rows(folder / SCORES, Scored, table)
    with pytest.raises(UserError, match="column perception: has other lengths than old_logp"):
        check("score", folder, {"rollout": sampled})
    nothing = {"perception": [[], [], [], []], "keep": [[], [], [], []], "dependency": []}
    write_rows(folder / SCORES, Scored, [Scored(**{**vars(row), **nothing}) for row in scores])
    check("score", folder, {"rollout": sampled})
    short = {name: [[] for _ in range(4)] for name in vars(Statistics("", 0, *[[]] * 8)) if name[0] not in "sp"}
    rows = [Statistics(r.sample_id, r.position, **{**short, "kl": [[0.5], [], [], []]}) for r in scores]
    write_rows(folder / STATISTICS, Statistics, rows)
    with pytest.raises(UserError, match="column kl: has not one value for each token"):
        check("score", folder, {"rollout": sampled})


def test_perception_is_watched_at_the_first_step_and_every_so_many():
    assert [step for step in range(1, 31) if is_watched(step, 10)] == [1, 10, 20, 30]
    assert not any(is_watched(step, 0) for step in range(1, 31))


def test_what_perception_is_measured_by(configure):
    dapo, hidden = "update.objective=dapo", "score.estimator=random"
    assert measured_by(configure(hidden)) == "random"
    assert measured_by(configure(dapo, hidden)) == "kl"  # its watched steps, as random looks at no image
    assert measured_by(configure(dapo, "score.estimator=k3")) == "k3"


def test_a_dapo_run_is_watched_and_scored_anew_for_an_objective_that_needs_more(tmp_path):
    runs = tmp_path / "runs"
    dapo = ["--run", "dapo", *FEW, *given("update.objective=dapo", "score.watch=2")]
    vppo("train", *dapo, runs=runs).succeeded()
    run = runs / "dapo"
    watched = sorted(path.parent.parent.parent.name for path in run.glob("steps/*/score-*/watch/scores.parquet"))
    assert watched == ["0001", "0002"]
    assert read_rows(next(run.glob("steps/0002/score-*/watch/scores.parquet")), Scored)[0].dependency
    page = vppo("report", "dapo", "--steps", "2", runs=runs).succeeded()
    assert "of step 2" in page.out
    refused = vppo("report", "dapo", "--steps", "3", runs=runs)
    assert (refused.code, "There: 1..2" in refused.err) == (2, True)

    # What is watched decides nothing.
    plan = vppo("plan", "--run", "dapo", *given("score.watch=1"), "--json", runs=runs).succeeded().json
    assert {row["status"] for row in plan["plan"]} == {"keep"}

    alone = ["--run", "dapo", "--steps", "2"]
    refused = vppo("train", *alone, "--stage", "update", *given("update.objective=vppo"), runs=runs)
    assert refused.code == 2
    assert "needs perception, which the scores of this step do not hold" in refused.err
    vppo("train", *alone, "--stage", "score", *given("score.store=perception"), runs=runs).succeeded()
    kept = stamps(run, "steps/*/*/*")
    vppo("train", *alone, "--stage", "update", *given("update.objective=vppo"), runs=runs).succeeded()
    now = stamps(run, "steps/*/*/*")
    assert {name: now[name] for name in kept} == kept
    assert {name.split("/")[1] for name in now.keys() - kept.keys()} == {"0002"}


def test_a_run_of_earlier_versions_keeps_the_scores_that_it_has(tmp_path):
    config = settings.load(None, ["update.objective=grpo"])
    text = "\n".join(line for line in settings.dump(config).splitlines() if not line.startswith("  store:"))
    (tmp_path / "config.yaml").write_text(text)
    assert stored(settings.load(tmp_path / "config.yaml", stored=True)) == "perception"
    assert stored(config) == "policy"
