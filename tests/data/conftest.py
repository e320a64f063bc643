"""Token shards of the small corpus."""

from pathlib import Path

import pytest

from elas_lightning.data import C4DataModule, prepare


@pytest.fixture(scope="session")
def tokens(corpus: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "tokens"
    data = C4DataModule(source="local", path=str(corpus), tokenizer=str(tokenizer_file))
    prepare.prepare(data.corpus, data.text_tokenizer, folder, workers=1)
    return folder
