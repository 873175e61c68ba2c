"""Settings: what there is, how files of them are read, and what names in them stand for."""
