"""docs/evidence.md and README's table, written from the committed results: `python -m benchmarks.evidence page`."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import StrictUndefined, Template

from benchmarks.evidence import claims, inherited, results
from benchmarks.evidence.markdown import grid, percent, points
from benchmarks.evidence.on_table import halve
from benchmarks.evidence.results import Ranking, Truth, best_of, best_of_random, picked, rankings
from benchmarks.evidence.supernets import SCORING, Setting
from nasx.comparison import Difference, paired_difference, score_interval
from nasx.ranking import rank_agreement
from nasx.search import Halving
from recipes.glit.bench import table
from recipes.glit.bench.settings import Settings
from recipes.glit.bench.training import unpacked
from recipes.glit.config import CIFAR10, DIGITS

ROOT = Path(__file__).resolve().parents[2]
PAGE, README = ROOT / "docs" / "evidence.md", ROOT / "README.md"
START, END = "<!-- evidence -->", "<!-- /evidence -->"

DEFAULT = {"digits": Setting("entangled", 25, ema=0.98), "cifar10": Setting("entangled", 50, ema=0.98)}
"""How the presets `digits` and `cifar10` train their supernets."""

RETRAINED = {"digits": DIGITS.search.top_k, "cifar10": CIFAR10.search.top_k}
"""How many of the best candidates the presets retrain."""

EPOCHS = {"digits": DIGITS.retrain.epochs, "cifar10": Settings().epochs}
FEWEST_SEEDS = 3
"""Supernet seeds below which a difference has no interval worth showing."""

ENOUGH = 10
"""Networks that a ranking is judged by at least."""

TITLES = {"digits": "digits", "cifar10": "CIFAR-10"}


def write() -> None:
    """Write the page and README's table."""
    PAGE.write_text(page())
    README.write_text(with_table(README.read_text()))


def with_table(readme: str) -> str:
    """Return README with its table replaced by what the results say."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{readme_table()}\n{END}{after}"


@lru_cache(maxsize=1)
def truths() -> Mapping[str, Truth]:
    """Return the accuracies of networks trained alone, by problem."""
    scored = results.records("cifar10-supernets")[0]["archs"]
    found = {"cifar10": results.cifar10_truth().among(scored), "digits": results.digits_truth()}
    return {scene: truth for scene, truth in found.items() if len(truth.indices) >= ENOUGH}


@lru_cache(maxsize=8)
def ranked(scene: str, scoring: str = SCORING) -> tuple[Ranking, ...]:
    """Return how every supernet of a problem ranked its networks."""
    return tuple(rankings(f"{scene}-supernets", truths()[scene], scoring=scoring))


def truth_table() -> str:
    """How much the networks of a space differ, and how much two trainings of one do."""
    rows = []
    for scene, truth in truths().items():
        agreement = rank_agreement(truth.test[:, 0], truth.test[:, 1])
        rows.append(
            [
                TITLES[scene],
                str(len(truth.indices)),
                str(truth.test.shape[1]),
                f"{percent(truth.accuracy.min())} / {percent(float(np.median(truth.accuracy)))} / "
                f"{percent(truth.accuracy.max())}",
                f"{100 * truth.spread:.2f}",
                f"{100 * truth.noise:.2f}",
                results.with_interval(agreement.tau),
            ]
        )
    head = (
        "data",
        "networks",
        "seeds",
        "worst / median / best %",
        "true spread",
        "noise of one training",
        "tau between two trainings",
    )
    return grid(head, rows)


def by_setting(scene: str, scoring: str = SCORING) -> dict[Setting, list[Ranking]]:
    """Return the supernets of a problem by how they were trained."""
    found: dict[Setting, list[Ranking]] = defaultdict(list)
    for ranking in ranked(scene, scoring):
        found[ranking.setting].append(ranking)
    return found


def mean_with_interval(values: Sequence[float]) -> str:
    """Return a mean over seeds with Student's 95 % interval."""
    column = np.asarray(values)
    if len(column) < FEWEST_SEEDS:
        return f"{column.mean():.2f}"
    return results.with_interval(score_interval(column))


def supernet_table(scene: str) -> str:
    """How well supernets of a problem rank, by how they were trained."""
    ceiling = rank_agreement(truths()[scene].test[:, 0], truths()[scene].test[:, 1]).tau.value
    rows = []
    for setting, found in by_setting(scene).items():
        taus = [ranking.agreement.tau.value for ranking in found]
        default = " (default)" if setting == DEFAULT[scene] else ""
        rows.append(
            [
                f"{setting.sharing}, {PATHS[setting.paths]}{default}",
                f"{setting.epochs:g}",
                f"{percent(float(np.mean([ranking.accuracy for ranking in found])))}",
                ", ".join(f"{tau:.2f}" for tau in taus),
                mean_with_interval(taus),
                f"{100 * float(np.mean(taus)) / ceiling:.0f} %",
                f"{100 * float(np.mean([ranking.agreement.regret[1] for ranking in found])):.2f}",
                f"{100 * float(np.mean([ranking.agreement.regret[5] for ranking in found])):.2f}",
            ]
        )
    head = (
        "supernet",
        "epochs",
        "mean accuracy %",
        "tau by seed",
        "mean tau",
        "of the ceiling",
        "regret of its first",
        "of its best five",
    )
    return grid(head, rows)


PATHS = {"uniform": "one path a step", "four": "four paths a step, averaged", "stratified": "paths spread over MACs"}


def scoring_table(scene: str) -> str:
    """What BatchNorm statistics and averaged weights change: of supernets that were scored in every way."""
    records = results.records(f"{scene}-supernets")
    scorings = max((list(record["hits"]) for record in records), key=len)
    complete = [number for number, record in enumerate(records) if len(record["hits"]) == len(scorings)]
    settings = list(dict.fromkeys(Setting(**records[number]["setting"]) for number in complete))
    seeds = {number: records[number]["seed"] for number in complete}
    rows = []
    for scoring in scorings:
        cells = []
        for setting in settings:
            of_setting = [
                ranking
                for ranking in ranked(scene, scoring)
                if ranking.setting == setting and ranking.seed in seeds.values()
            ]
            accuracy = float(np.mean([ranking.accuracy for ranking in of_setting]))
            cells.append(f"{100 * accuracy:.1f}, {np.mean([r.agreement.tau.value for r in of_setting]):.2f}")
        rows.append([scoring, *cells])
    head = [f"{s.sharing}, {s.paths}, {s.epochs:g} ({len(set(seeds.values()))})" for s in settings]
    return grid(("BatchNorm recalibration", *head), rows)


def spent(setting: Setting, scene: str) -> float:
    """Return what a supernet costs, in trainings of one network."""
    return setting.epochs / EPOCHS[scene]


def against_random(scene: str, setting: Setting, k: int) -> tuple[Difference, np.ndarray[Any, Any], float, int]:
    """Compare the k best by a supernet with as many random networks as its training would have paid for besides.

    Returns the difference over supernet seeds, what each seed's search found, the expected best of the random ones, and
    their number.
    """
    found = [ranking for ranking in ranked(scene) if ranking.setting == setting]
    trainings = k + math.ceil(spent(setting, scene))
    return *compared(truths()[scene], found, k, trainings), trainings


def compared(
    truth: Truth, found: Sequence[Ranking], k: int, trainings: int
) -> tuple[Difference, np.ndarray[Any, Any], float]:
    """Compare the k best by each supernet with some number of random networks, as `against_random` does."""
    searched = np.array([best_of(truth, top(ranking, k)) for ranking in found])
    random = best_of_random(truth, trainings)
    return paired_difference(searched, np.full(len(searched), random)), searched, random


def by_networks(scene: str = "cifar10") -> str:
    """The default search against random networks where there are fewer networks to choose from."""
    everyone, k, setting = truths()[scene], RETRAINED[scene], DEFAULT[scene]
    trainings, rows = k + math.ceil(spent(setting, scene)), []
    for count in sorted({len(everyone.indices) * share // 10 for share in (3, 6, 10)}):
        truth = everyone.among(everyone.indices[:count])
        found = [r for r in rankings(f"{scene}-supernets", truth, scoring=SCORING) if r.setting == setting]
        difference, searched, random = compared(truth, found, k, trainings)
        tau = float(np.mean([ranking.agreement.tau.value for ranking in found]))
        rows.append([str(count), f"{tau:.2f}", percent(float(searched.mean())), percent(random), points(difference)])
    return grid(("first networks", "mean tau", "search, test %", "random, test %", "difference in points"), rows)


def by_block(scene: str = "cifar10") -> str:
    """Mean accuracy of the networks with each number of global heads in a block, trained alone and in the supernet."""
    truth, space = truths()[scene], table().settings.space
    heads = np.array([list(space[index].only("block.*.global_heads").values()) for index in truth.indices])
    scores = np.mean([r.scores for r in ranked(scene) if r.setting == DEFAULT[scene]], axis=0)

    def means(accuracies: np.ndarray[Any, Any], block: int) -> str:
        found = (accuracies[heads[:, block] == count].mean() for count in range(heads.max() + 1))
        return ", ".join(f"{100 * mean:.1f}" for mean in found)

    rows = [[str(block + 1), means(truth.accuracy, block), means(scores, block)] for block in range(heads.shape[1])]
    return grid(("block", "trained alone", "in the supernet"), rows)


def top(ranking: Ranking, k: int) -> list[int]:
    """Return the places of the k networks that a supernet scores best."""
    return [int(place) for place in np.argsort(-ranking.scores, kind="stable")[:k]]


def comparison_table() -> str:
    """Searches against random networks at equal training epochs."""
    rows = []
    for scene in truths():
        for setting, found in by_setting(scene).items():
            if len(found) < FEWEST_SEEDS:
                continue
            for k in (1, 2, 4, 5):
                difference, searched, random, trainings = against_random(scene, setting, k)
                default = " (default)" if setting == DEFAULT[scene] and k == RETRAINED[scene] else ""
                rows.append(
                    [
                        f"{TITLES[scene]}: {setting.sharing}, {PATHS[setting.paths]}, "
                        f"{setting.epochs:g} epochs{default}",
                        str(k),
                        f"{k + spent(setting, scene):.2g} / {trainings}",
                        str(len(found)),
                        percent(float(searched.mean())),
                        percent(random),
                        points(difference),
                    ]
                )
    head = (
        "supernet",
        "networks retrained",
        "cost: searched / random",
        "seeds",
        "searched %",
        "random %",
        "difference in points",
    )
    return grid(head, rows)


HALVINGS = ((16, 2, None), (16, 2, 0.5), (24, 2, None))
"""Networks that halving starts with, those it finishes, and the share of a training after which the first leave."""


def halving_table(scene: str = "cifar10") -> str:
    """Spending on real training: halving of the supernet's best against its top-k and random starts."""
    truth = truths()[scene]
    found = [ranking for ranking in ranked(scene) if ranking.setting == DEFAULT[scene]]
    everyone, rng = range(len(truth.indices)), np.random.default_rng(0)
    rows = []
    for candidates, keep, first_share in HALVINGS:
        plan = Halving(candidates, keep, first_share=first_share)
        k = math.ceil(plan.trainings)
        from_top = np.array([_halved(truth, top(ranking, candidates), plan) for ranking in found])
        same_cost = np.array([best_of(truth, top(ranking, k)) for ranking in found])
        from_random = np.mean(
            [_halved(truth, list(rng.choice(everyone, candidates, replace=False)), plan) for _ in range(200)]
        )
        rows.append(
            [
                f"{candidates} to {keep}, first after {plan.rungs[0].share:g} of a training",
                f"{plan.trainings:.2g}",
                percent(float(from_top.mean())),
                percent(float(same_cost.mean())),
                percent(float(from_random)),
                percent(best_of_random(truth, k)),
                points(paired_difference(from_top, same_cost)),
            ]
        )
    head = (
        "halving",
        "trainings",
        "halved, from the supernet %",
        "the supernet's top k %",
        "halved, random starts %",
        "best of k random %",
        "halving over top k, points",
    )
    return grid(head, rows)


def _halved(truth: Truth, places: Sequence[int], plan: Halving) -> float:
    """Return the mean test accuracy of what halving some networks finds, over training seeds."""
    found, space = table(), table().settings.space
    place_of = {space[truth.indices[place]]: place for place in places}
    return float(
        np.mean(
            [
                picked(truth, [place_of[arch] for arch in halve(found, list(place_of), plan, seed)], seed)
                for seed in range(truth.val.shape[1])
            ]
        )
    )


def searcher_table() -> str:
    """Searchers that evaluate by real training, on the table."""
    found = results.records("searchers")
    rows: dict[str, list[str]] = {}
    for row in found:
        rows.setdefault(row["searcher"], [row["searcher"]]).append(
            f"{100 * row['regret']:.2f} ({100 * row['low']:.2f} to {100 * row['high']:.2f})"
        )
    evaluations = sorted({row["evaluations"] for row in found})
    return grid(("searcher", *(f"{count} trainings" for count in evaluations)), rows.values())


def readme_table() -> str:
    """The one table that README shows: the default search against random networks at equal cost."""
    rows, others = [], []
    for scene in truths():
        setting = DEFAULT[scene]
        difference, searched, random, trainings = against_random(scene, setting, RETRAINED[scene])
        other = {k: against_random(scene, setting, k)[0] for k in (1, 2, 4, 5) if k != RETRAINED[scene]}
        *first, last = [str(k) for k, found in other.items() if not found.shown] or [""]
        if last:
            counts = " or ".join([", ".join(first), last] if first else [last])
            others.append(f"with {counts} retrained on {TITLES[scene]}")
        taus = [ranking.agreement.tau.value for ranking in ranked(scene) if ranking.setting == setting]
        truth = truths()[scene]
        ceiling = rank_agreement(truth.test[:, 0], truth.test[:, 1]).tau.value
        rows.append(
            [
                TITLES[scene],
                str(len(truth.indices)),
                str(len(searched)),
                str(RETRAINED[scene]),
                f"{np.mean(taus):.2f} (ceiling {ceiling:.2f})",
                percent(float(searched.mean())),
                f"{percent(random)} (best of {trainings})",
                points(difference),
            ]
        )
    head = (
        "data",
        "networks",
        "seeds",
        "retrained",
        "Kendall's tau of the supernet",
        "search, test %",
        "random at the same cost, test %",
        "difference in points (95 %)",
    )
    text = (
        "Means over supernets with different seeds. Each search retrains as many networks as the preset does, and "
        "chooses among networks that were all trained alone ([Evidence](docs/evidence.md)). Tau compares a supernet "
        "with the mean of two trainings, the ceiling one training with another, so tau can exceed the ceiling."
    )
    if others:
        text += f" The same data shows no difference {' and '.join(others)}."
    if results.exist("ablation-table5"):
        text += f"\n\n{claims.whole_search()}"
    if inherited.lengths():
        text += f"\n\n{inherited.sentence(truths()['cifar10'])}"
    return f"{grid(head, rows)}\n\n{text}"


def plateau() -> str:
    """Whether networks gain from longer training than the preset `digits` gives them."""
    found: dict[float, dict[tuple[int, int], float]] = defaultdict(dict)
    for record in results.records("digits-plateau"):
        hits = np.concatenate([unpacked(record[part]) for part in ("val", "test")])
        found[record["epochs"]][record["arch"], record["seed"]] = float(hits.mean())
    (short, of_short), (long, of_long) = sorted(found.items())
    both = sorted(of_short.keys() & of_long.keys())
    before, after = (np.array([accuracies[key] for key in both]) for accuracies in (of_short, of_long))
    return (
        f"{len(both)} trainings of networks with the same heads in every block reach {percent(float(before.mean()))} % "
        f"in {short:g} epochs and {percent(float(after.mean()))} % in {long:g}; the difference in points is "
        f"{points(paired_difference(after, before))}."
    )


def ablations() -> Mapping[str, str]:
    """GLiT's ablations of the search that were run, by title."""
    found = {}
    if results.exist("ablation-table4"):
        claim = "searching both stages finds better networks than the heads alone, DeiT's shape and the NLP space"
        found["GLiT, table 4: what each level of the space adds"] = claims.ablation("table4", "both stages", claim)
    if results.exist("ablation-table5"):
        ours, joint = "hierarchical", "SPOS, joint space, epochs doubled"
        claim = "searching stage by stage finds better networks than one joint search and than random networks"
        mechanism = claims.sizes_found("table5", ours, joint)
        found["GLiT, table 5: searching stage by stage"] = (
            f"{claims.ablation('table5', ours, claim)}\n\nThe paper explains its result by joint supernets that prefer "
            f"small networks. {mechanism}"
        )
    return found


def facts() -> str:
    """What the table covers and where it was made."""
    found = table()
    hours = sum(row.seconds for row in found) / 3600
    spent = f"{60 * hours:.0f} minutes, many networks at once"
    if found.facts["device"] == "cpu":
        spent = f"{hours:.1f} hours of one CPU thread"
    return (
        f"The table of CIFAR-10: {found!r}, made on {found.facts['machine']} at commit `{found.facts['commit']}` with "
        f"torch {found.facts['torch']}, {spent}."
    )


def page() -> str:
    """Return the page."""
    parts = {
        "truth": truth_table(),
        "supernets": {TITLES[scene]: supernet_table(scene) for scene in truths()},
        "scorings": {TITLES[scene]: scoring_table(scene) for scene in truths()},
        "comparison": comparison_table(),
        "by_block": by_block(),
        "by_networks": by_networks(),
        "halving": halving_table(),
        "inherited": inherited.table(truths()["cifar10"]) if inherited.lengths() else "",
        "tuned": f"{inherited.NETWORKS} networks are fine-tuned for {inherited.TUNING_EPOCHS} epochs",
        "searchers": searcher_table(),
        "repeats": results.records("searchers")[0]["repeats"],
        "plateau": plateau(),
        "claims": results.exist("cifar10-claims"),
        "table1": claims.glit_table,
        "localvit": claims.localvit_table,
        "ablations": ablations(),
        "autoformer": claims.autoformer_table() if results.exist("autoformer") else "",
        "facts": facts(),
        "digits": "digits" in truths(),
        **{f"epochs_{scene}": f"{epochs:g}" for scene, epochs in EPOCHS.items()},
        "readme": readme_table().replace(" ([Evidence](docs/evidence.md))", ""),
    }
    template = Path(__file__).with_name("page.md.j2").read_text()
    return Template(template, undefined=StrictUndefined, keep_trailing_newline=True).render(parts)
