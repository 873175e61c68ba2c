"""Constants of objectives of which no value was published, as tests set them."""

UNPUBLISHED: dict[str, dict[str, float]] = {"pepo": {"steps": 4}, "pivot-vaa": {"beta": 0.7}}
