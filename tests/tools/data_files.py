"""Small data files, written and read as training reads them."""

import base64
import io
import json

from PIL import Image

from pipelines.config.schema import DataConfig
from pipelines.disk.records import Sample
from pipelines.prepare.sources import read_source


def png(shade=0, size=(28, 28), form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, form)
    return buffer.getvalue()


def read(source, **settings):
    return list(read_source(DataConfig(source=str(source), **settings), split="train").rows)


def opened(path, **settings):
    source = read_source(DataConfig(source=str(path), **settings), split="train")
    return list(source.rows), source.remarks()


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**changes):
    return {"problem": "<image>How many?", "images": ["a.png"], "answer": "3"} | changes


def reasons(found):
    return [item.reason for item in found if not isinstance(item, Sample)]


def data_address(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()
