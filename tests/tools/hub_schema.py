"""Writes small copies of the public benchmarks, made up, in the exact schema of the hub.

    python tests/tools/hub_schema.py DIR          # a few rows each, every special case among them
    python tests/tools/hub_schema.py DIR --full   # as many rows as published, of tiny images

DIR then serves as ``--data-dir``. Column names and types are those of the data sets' cards; the
questions and pictures are drawn here. Splits that are never to be read lie beside the others.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from evals.benchmarks.base import Where
from evals.benchmarks.table import BENCHMARKS, EIGHT
from pipelines.model.images import Unusable

Rows = list[dict[str, Any]]
Shards = dict[str, Rows]
"""File, relative to the data set's folder -> its rows."""

TEXT, NUMBER, IMAGE = datasets.Value("string"), datasets.Value("int64"), datasets.Image()
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
IMAGES_1_TO_7 = {f"image_{n}": IMAGE for n in range(1, 8)}
SUBJECTS = BENCHMARKS["mmmu_val"].subsets

FEATURES: dict[str, dict[str, Any]] = {
    "mathverse": {
        "sample_index": TEXT,
        "problem_index": TEXT,
        "problem_version": TEXT,
        "question": TEXT,
        "image": IMAGE,
        "answer": TEXT,
        "question_type": TEXT,
        "metadata": {"split": TEXT, "source": TEXT, "subject": TEXT, "subfield": TEXT},
        "query_wo": TEXT,
        "query_cot": TEXT,
        "question_for_eval": TEXT,
    },
    "dynamath": {
        "id": TEXT,
        "question": TEXT,
        "image": TEXT,
        "decoded_image": IMAGE,
        "ground_truth": TEXT,
        "answer_type": TEXT,
        "subject": TEXT,
        "knowledge_level": TEXT,
    },
    "mmk12": {"id": TEXT, "question": TEXT, "answer": TEXT, "subject": TEXT, "image": IMAGE},
    "geo3k": {
        "images": datasets.List(IMAGE),
        "problem": TEXT,
        "answer": TEXT,
        "id": NUMBER,
        "choices": datasets.List(TEXT),
        "ground_truth": TEXT,
    },
    "mathvision": {
        "id": TEXT,
        "question": TEXT,
        "options": datasets.List(TEXT),
        "image": TEXT,
        "decoded_image": IMAGE,
        "answer": TEXT,
        "solution": TEXT,
        "level": NUMBER,
        "subject": TEXT,
    },
    "wemath": {
        "ID": TEXT,
        "split": TEXT,
        "knowledge concept": TEXT,
        "question": TEXT,
        "option": TEXT,
        "answer": TEXT,
        "image_path": IMAGE,
        "key": TEXT,
        "question number": NUMBER,
        "knowledge concept description": TEXT,
    },
    "logicvista": {"image": IMAGE, "question": TEXT, "answer": TEXT},
    "mmmu_pro": {"id": TEXT, "image": IMAGE, "options": TEXT, "answer": TEXT, "subject": TEXT},
    "mmmu_pro_standard10": {
        "id": TEXT,
        "question": TEXT,
        "options": TEXT,
        "explanation": TEXT,
        **IMAGES_1_TO_7,
        "img_type": TEXT,
        "answer": TEXT,
        "topic_difficulty": TEXT,
        "subject": TEXT,
    },
    "mmmu_val": {
        "id": TEXT,
        "question": TEXT,
        "options": TEXT,
        "explanation": TEXT,
        **IMAGES_1_TO_7,
        "img_type": TEXT,
        "answer": TEXT,
        "topic_difficulty": TEXT,
        "question_type": TEXT,
        "subfield": TEXT,
    },
    "aokvqa": {
        "image": IMAGE,
        "question_id": TEXT,
        "question": TEXT,
        "choices": datasets.List(TEXT),
        "correct_choice_idx": datasets.Value("int8"),
        "direct_answers": TEXT,
        "difficult_direct_answer": datasets.Value("bool"),
        "rationales": datasets.List(TEXT),
    },
    "simplevqa": {
        "data_id": NUMBER,
        "image": TEXT,
        "question": TEXT,
        "answer": TEXT,
        "language": TEXT,
        "original_category": TEXT,
        "source": TEXT,
    },
}
FEATURES["mmmu_pro_standard4"] = FEATURES["mmmu_pro_standard10"]


@cache
def png(number: int, side: int = 56) -> bytes:
    """A picture with a number on it."""
    image = Image.new("RGB", (side, side), (255, 255, 255))
    ImageDraw.Draw(image).text((side // 3, side // 3), str(number), fill=(0, 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture(number: int) -> dict[str, Any]:
    """The hub's form of an image. Numbers from 100 on, of the fillers, share one tiny image."""
    data = png(number) if number < 100 else png(0, 8)
    return {"bytes": data, "path": f"{number}.png"}


def mathverse(full: bool) -> Shards:
    """Problems 1, 2 are multiple choice, 3 is free-form; each has five versions.

    Some golds are no plain letter.
    """
    rows: Rows = []
    golds = {4: "(C)", 5: "C\nD", 6: "A\nC", 7: "7°", 8: "8°"} if full else {2: "(C)"}
    for problem in range(1, 789 if full else 4):
        choice = problem in (1, 2) or 3 < problem <= 3 + 434
        for index, version in enumerate(VERSIONS):
            question = f"Find angle {problem}.\nChoices:\nA:{problem}°\nB:90°"
            rows.append(
                {
                    "sample_index": str(len(rows) + 1),
                    "problem_index": str(problem),
                    "problem_version": version,
                    "question": "" if version == "Vision Only" else f"{question} ({index})",
                    "image": picture(len(rows) + 1 if problem < 4 else 100),
                    "answer": golds.get(problem, "A") if choice else f"{problem}",
                    "question_type": "multi-choice" if choice else "free-form",
                    "metadata": {
                        "split": "testmini",
                        "source": "made up",
                        "subject": "Plane Geometry" if problem % 2 else "Functions",
                        "subfield": "Angle",
                    },
                    "query_wo": "",
                    "query_cot": "",
                    "question_for_eval": "" if problem % 2 else question,
                }
            )
    other = [rows[0] | {"sample_index": "text-only", "problem_version": "Text Only"}]
    return {"testmini.parquet": rows, "testmini_text_only.parquet": other}


def dynamath(full: bool) -> Shards:
    """Seeds 1: integers, 2: letters, 3: words, 4: an integer in variants 7 to 10 only."""
    shards: Shards = {}
    for variant in range(1, 11):
        rows: Rows = []
        for seed in range(1, 502 if full else 5):
            gold, kind = str(seed - variant), "float"
            if seed == 2:
                gold, kind = "ABCDE"[variant % 5], "multiple choice"
            elif seed == 3:
                gold, kind = "May", "text"
            elif (seed == 4 and variant < 7) or (seed == 5 and variant > 2) or seed > 5 + 364:
                gold = f"{variant}.5"
            rows.append(
                {
                    "id": str(seed),
                    "question": f"What is {seed} less {variant}?",
                    "image": f"images/{variant}/{seed}.png",
                    "decoded_image": picture(10 * seed + variant if seed < 5 else 100),
                    "ground_truth": gold,
                    "answer_type": kind,
                    "subject": "algebra" if seed % 2 else "graph theory",
                    "knowledge_level": "high school" if seed < 4 else "undergraduate",
                }
            )
        shards[f"data/sample{variant}-00000-of-00001.parquet"] = rows
    return shards


def mmk12(full: bool) -> Shards:
    subjects = ("math", "physics", "chemistry", "biology")
    rows = [
        {
            "id": f"{subject}-{n}",
            "question": f"What is shown?\nA. {n}\nB. none\nC. all\nD. half",
            "answer": "ABCD"[index],
            "subject": subject,
            "image": picture(index if n < 1 else 100),
        }
        for n in range(500 if full else 1)
        for index, subject in enumerate(subjects)
    ]
    return {"data/test-00000-of-00001.parquet": rows, **_elsewhere("data/train", rows)}


def geo3k(full: bool) -> Shards:
    golds = ("7", r"3 \sqrt { 2 }", "B")
    rows = [
        {
            "images": [picture(n if n < 3 else 100)],
            "problem": f"<image>Find side {n}.",
            "answer": golds[n] if n < 3 else str(n),
            "id": 2401 + n,
            "choices": ["1", "2", "3", "4"],
            "ground_truth": "C",
        }
        for n in range(601 if full else 3)
    ]
    shards = {"data/test-00000-of-00001.parquet": rows}
    return shards | _elsewhere("data/train", rows) | _elsewhere("data/validation", rows)


def mathvision(full: bool) -> Shards:
    letters = list("ABCDE")
    pictures = [f"<image{n}>" for n in range(2, 7)]
    rows: Rows = []

    def add(question: str, options: list[str], answer: str, number: int = 100) -> None:
        rows.append(
            {
                "id": str(len(rows) + 1),
                "question": question,
                "options": options,
                "image": f"images/{len(rows) + 1}.jpg",
                "decoded_image": picture(number),
                "answer": answer,
                "solution": None,
                "level": len(rows) % 5 + 1,
                "subject": "algebra" if len(rows) % 2 else "solid geometry",
            }
        )

    add("Which number is missing?\n<image1>", [], "60", 1)
    add("How far below zero is it?", [], "-3", 2)
    add("How long is it?\n<image1>", [r"$\sqrt{17}$", "7", "8", "9", "10"], "B", 3)
    add("Which side?\n<image1>", letters, "E", 4)
    add("Which piece is left over?\n<image1>", pictures, "D", 5)
    add("The ant <image1> walks to <image2>. Where does <image1> go?\n<image3>", [], "4", 6)
    add("<image1>\nWhich side is opposite?\n<image2>", [], "C", 7)
    for gold in ("4.8", r"$\frac{1}{3}$", "11 "):
        add("How much?\n<image1>", [], gold)
    for n in range(2900 if full else 0):
        add(f"What is {n}?\n<image1>", letters if n % 2 else [], "A" if n % 2 else str(n))
    for n in range(130 if full else 0):
        add("How much?\n<image1>", [], f"{n}.5")
    testmini = "data/testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet"
    return {"data/test-00000-of-00001-3532b8d3f1b4047a.parquet": rows, testmini: rows[:1]}


def wemath(full: bool) -> Shards:
    """525 composites, 360 of two steps and 165 of three, each after its one-step parts."""
    rows: Rows = []
    for steps, count in ((2, 360), (3, 165)):
        for n in range(1, count + 1 if full else 2):
            for part in [*map(str, range(1, steps + 1)), "multi"]:
                rows.append(
                    {
                        "ID": f"{steps}steps_{n}",
                        "split": "testmini",
                        "knowledge concept": f"Area of {part}",
                        "question": f"As shown, what is part {part}?",
                        "option": "A. 10;B. 15 cm;C. 31.4; D. No correct answer",
                        "answer": "ABCD"[len(rows) % 4],
                        "image_path": picture(len(rows) if n == 1 else 100),
                        "key": f"{steps}steps_{part}",
                        "question number": len(rows) + 1,
                        "knowledge concept description": "An area is measured in square units.",
                    }
                )
    return {"data/testmini-00000-of-00001-adbfe22dcd3558e6.parquet": rows}


def logicvista(full: bool) -> Shards:
    """Row 2 is empty; golds of rows 1, 3 and (in full) 4 are sets."""
    golds = ["A", "B, D", "", "A, C, E", *(["B, C"] if full else [])]
    golds += ["ABCDE"[n % 5] for n in range(448 - len(golds) if full else 0)]
    rows = [
        {
            "image": picture(n if n < 5 else 100),
            "answer": gold,
            "question": f"Which comes next in {n}? Select from A, B, C, D and E." if gold else "",
        }
        for n, gold in enumerate(golds)
    ]
    return {"data/test-00000-of-00001.parquet": rows}


def mmmu_pro(full: bool) -> Shards:
    rows = [
        {
            "id": f"test_{SUBJECTS[n % 30]}_{n}",
            "image": picture(n if n < 2 else 100),
            "options": str([f"option {letter}" for letter in "ABCDEFGHIJ"]),
            "answer": "ABCDEFGHIJ"[n % 10],
            "subject": SUBJECTS[n % 30],
        }
        for n in range(1730 if full else 2)
    ]
    return {"vision/test-00000-of-00001.parquet": rows}


def _question(name: str, question: str, options: Any, answer: str, images: int) -> dict[str, Any]:
    """What MMMU and the standard subsets of MMMU-Pro have in common; options are a list's text."""
    given = {f"image_{n}": picture(n) if n <= images else None for n in range(1, 8)}
    return {
        "id": name,
        "question": question,
        "options": str(options),
        "explanation": "",
        **given,
        "img_type": "['Diagrams']",
        "answer": answer,
        "topic_difficulty": "Easy",
    }


def _standard(count: int) -> Callable[[bool], Shards]:
    """Row 0: options with an apostrophe, 1: pictures as options, 2: one picture named twice; of the whole
    split, one row has options in a list in a list, and one names a picture 35 times."""

    def make(full: bool) -> Shards:
        options = ["the hero's debt", 'a "large" one', *(f"{n} dollars" for n in range(count - 2))]
        pictures = ["<image 2>", "<image 3>", *(f"none of {n}" for n in range(count - 2))]
        rows = [
            _question("test_Finance_1", "What does <image 1> show?", options, "A", 1),
            _question("test_Art_2", "Which goes with <image 1>?", pictures, "B", 3),
            _question("test_Music_3", "<image 1> Compare <image 2> with <image 1>.", options, "C", 2),
        ]
        rows += [
            _question(f"test_Math_{n}", "What is <image 1>?", options, "D", 1) for n in range(3, 1730 if full else 3)
        ]
        if full:
            rows[7]["options"] = f"[{options}]"
            rows[8]["question"] = "Sort these. " + "<image 1> or " * 35
        rows = [row | {"subject": row["id"].split("_")[1]} for row in rows]
        return {f"standard ({count} options)/test-00000-of-00001.parquet": rows}

    return make


def mmmu_val(full: bool) -> Shards:
    """A question of each subject; Accounting, Math, Art have a special one besides."""
    shards: Shards = {}
    for index, subject in enumerate(SUBJECTS):
        rows = [_question(f"validation_{subject}_1", "What is <image 1>?", ["1", "2", "3", "4"], "C", 1)]
        special = {
            "Accounting": ("Find the ratio. <image 1>", [], "1.06", 1),
            "Math": ("Which share is it in <image 1>?", [], "['24/7', '3.429']", 1),
            "Art": ("Which is baroque? <image 1>", ["<image 2>", "A", "<image 3>", "B"], "A", 3),
        }.get(subject)
        rows += [_question(f"validation_{subject}_2", *special)] if special else []
        opened = [51 - 29, *[1] * 29][index] if full else 0
        for n in range(len(rows) + 1, 31 if full else 0):
            name, question = f"validation_{subject}_{n}", "What is <image 1>?"
            opening = n > 30 - opened
            rows.append(_question(name, question, [] if opening else list("ABCD"), "B", 1))
        for row in rows:
            open_ended = row["options"] == "[]"
            row |= {"question_type": "open" if open_ended else "multiple-choice", "subfield": "any"}
        shards[f"{subject}/validation-00000-of-00001.parquet"] = rows
    return shards | _elsewhere("Accounting/dev", shards["Accounting/validation-00000-of-00001.parquet"])


def aokvqa(full: bool) -> Shards:
    """Photographs with four choices; the gold is a number, from 0."""
    rows = [
        {
            "image": picture(n if n < 3 else 100),
            "question_id": f"question-{n}",
            "question": f"What is in picture {n}?",
            "choices": ["a cat", "two dogs", f"{n}", "G"],
            "correct_choice_idx": n % 4,
            "direct_answers": "['cat', 'cat']",
            "difficult_direct_answer": False,
            "rationales": ["It is."],
        }
        for n in range(1145 if full else 3)
    ]
    shards = {"data/validation-00000-of-00001.parquet": rows}
    return shards | _elsewhere("data/train", rows) | _elsewhere("data/test", rows)


def simplevqa(full: bool) -> Shards:
    """Every other question is in Chinese; images are base64."""
    rows = [
        {
            "data_id": n,
            "image": base64.b64encode(picture(n if n < 4 else 100)["bytes"]).decode(),
            "question": f"Which mountain is {n}?" if n % 2 == 0 else "这是什么山？",
            "answer": "Mount Fuji" if n % 2 == 0 else "富士山",
            "language": "CN" if n % 2 else "EN",
            "original_category": "nature" if n % 4 else "place",
            "source": "made up",
        }
        for n in range(2025 if full else 4)
    ]
    return {"data/test-00000-of-00001.parquet": rows}


def _elsewhere(stem: str, rows: Rows) -> Shards:
    """A row of another split, which must not turn up."""
    return {f"{stem}-00000-of-00001.parquet": rows[:1]}


MAKERS: dict[str, Callable[[bool], Shards]] = {
    "mathverse": mathverse,
    "dynamath": dynamath,
    "mmk12": mmk12,
    "geo3k": geo3k,
    "mathvision": mathvision,
    "wemath": wemath,
    "logicvista": logicvista,
    "mmmu_pro": mmmu_pro,
    "mmmu_val": mmmu_val,
    "mmmu_pro_standard10": _standard(10),
    "mmmu_pro_standard4": _standard(4),
    "aokvqa": aokvqa,
    "simplevqa": simplevqa,
}

CARDS = {
    "dynamath": {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": f"sample_variant{n}", "path": f"data/sample{n}-*"} for n in range(1, 11)],
            }
        ]
    }
}
"""The head of README.md, where the files of a split are not called like it."""


def write(folder: Path, full: bool = False, names: tuple[str, ...] = tuple(MAKERS)) -> Path:
    """Write hub snapshots as ``folder/ORG/REPO``; returns ``folder``."""
    for name in names:
        place = folder / BENCHMARKS[name].hub
        schema = datasets.Features(FEATURES[name]).arrow_schema
        for file, rows in MAKERS[name](full).items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), place / file)
        if name in CARDS:
            text = json.dumps(CARDS[name])  # which is YAML, too
            (place / "README.md").write_text(f"---\n{text}\n---\n# A data set\n")
    return folder


def split_rows(name: str, full: bool = False) -> Iterator[tuple[Where, dict[str, Any]]]:
    """The rows of a benchmark's own split in order, with their places."""
    made, row = MAKERS[name](full), 0
    benchmark = BENCHMARKS[name]
    wheres = [Where(subset, split) for subset in benchmark.subsets for split in benchmark.splits]
    for where, rows in zip(wheres, made.values(), strict=False):
        for raw in rows:
            yield Where(where.subset, where.split, row), raw
            row += 1


INSTRUCTION = (
    "You first think through the reasoning process as an internal monologue, enclosed within "
    "<think> </think> tags. Then, provide your final answer enclosed within \\boxed{}."
)


def write_authors(folder: Path, names: tuple[str, ...] = EIGHT) -> Path:
    """The same questions as the authors' files: ``papo/ORG_REPO.json`` and ``images/``."""
    (folder / "papo").mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = []
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        for where, raw in split_rows(name):
            try:
                question = BENCHMARKS[name].row(raw, where)
            except Unusable:
                continue
            if question is None:
                continue
            paths = []
            for image in question.images:
                path = f"images/{name}/{len(rows)}-{len(paths)}.png"
                (folder / path).write_bytes(image["bytes"])
                paths.append(path)
            text = question.problem
            text = text if "<image>" in text else "<image>" * len(paths) + text
            asked = {"role": "user", "content": f"{text}\n\n{INSTRUCTION}"}
            gold = {"role": "assistant", "content": question.answer}
            rows.append({"messages": [asked, gold], "images": paths})
        stem = BENCHMARKS[name].hub.replace("/", "_")
        (folder / "papo" / f"{stem}.json").write_text(json.dumps(rows, indent=2))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--full", action="store_true", help="as many rows as published")
    given = parser.parse_args()
    write(given.folder, given.full)
    for name in MAKERS:
        rows = sum(1 for _ in split_rows(name, given.full))
        print(f"{name:20} {rows:5} rows  {given.folder / BENCHMARKS[name].hub}")


if __name__ == "__main__":
    main()
