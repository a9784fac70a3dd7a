"""A data set by its name on the Hugging Face hub, read through the package `datasets`.

It is downloaded once. What is prepared of it is then read from the cache folder alone, so that a
run goes on without a connection, and does not change when the data set does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nanozoo_core.data.cache import digest
from nanozoo_core.data.corpora import OTHER_SPLITS, ROWS_WITHOUT_TEXT, Corpus, LeftOut
from nanozoo_core.data.formats import ROWS_AT_ONCE, column_texts, no_text_key
from nanozoo_core.errors import DataError, first_line


@dataclass(frozen=True)
class HubCorpus(Corpus):
    """The rows of a data set's split `train`, or of its only split, each a document.

    Attributes: path, NAME or NAME:CONFIGURATION; text_key, the column of the text.
    """

    path: str
    text_key: str
    name: str = "huggingface"
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    @property
    def identity(self) -> str:
        return digest([self.path, self.text_key])

    @property
    def description(self) -> str:
        return f"{self.path}, downloaded from the Hugging Face hub where it is not here yet"

    def documents(self) -> Iterator[bytes]:
        """Raises: DataError without the package, the data set or a column of text."""
        self.left_out.clear()
        split = self._split()
        where = f"the columns of {self.path}"
        if self.text_key not in split.column_names:
            raise no_text_key(self.text_key, where, split.column_names)
        rows = split.select_columns(self.text_key).with_format("arrow")
        is_empty = True
        for table in rows.iter(ROWS_AT_ONCE):
            for text in column_texts(table[self.text_key].combine_chunks(), self.text_key, where):
                if text is None:
                    self.left_out.add(ROWS_WITHOUT_TEXT, self.path)
                else:
                    is_empty = False
                    yield text
        if is_empty:
            raise DataError(f"data.path={self.path} holds no text to read ({self.left_out})")

    def _split(self) -> Any:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise DataError(
                "data.corpus=huggingface needs the package datasets; install nanozoo-core[datasets]"
            ) from error
        name, _, configuration = self.path.partition(":")
        try:
            found = load_dataset(name, configuration or None)
        except ValueError as error:  # there are several configurations, and it lists them
            raise DataError(
                f"data.path={self.path} cannot be loaded ({' '.join(str(error).split())}); a "
                "configuration is given as NAME:CONFIGURATION"
            ) from error
        except Exception as error:  # it lets those of many libraries through
            raise DataError(
                f"data.path={self.path} cannot be loaded from the Hugging Face hub "
                f"({first_line(error)}); look at its name and the connection"
            ) from error
        splits = list(found)
        if len(splits) > 1 and "train" not in splits:
            raise DataError(
                f"data.path={self.path} has the splits {', '.join(splits)} and none called train; "
                "save the one to be read with save_to_disk, and name its folder with "
                "data.corpus=text"
            )
        chosen = "train" if "train" in splits else splits[0]
        for split in splits:
            if split != chosen:
                self.left_out.add(OTHER_SPLITS, split)
        return found[chosen]


def hub_corpus(path: str | list[str] | None, text_key: str) -> HubCorpus:
    """Raises: DataError unless `path` is one name."""
    if not isinstance(path, str):
        raise DataError(
            "data.corpus=huggingface needs data.path: the name of a data set, such as "
            "roneneldan/TinyStories, or NAME:CONFIGURATION"
        )
    return HubCorpus(path, text_key)
