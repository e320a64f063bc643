import numpy as np
import torch

from elas_lightning.data.rows import IGNORED, RowCutter, make_batch

END = 0


def documents(*lengths):
    """Documents of 1, 2, 3, … without repeats, each closed by the end token."""
    ids = iter(range(1, 10_000))
    return [np.array([*(next(ids) for _ in range(n)), END], dtype=np.int32) for n in lengths]


def test_truncate_makes_one_row_a_document_and_drops_the_rest():
    rows = list(RowCutter(4, "truncate").rows(documents(2, 9, 0, 4)))
    assert [row.tolist() for row in rows] == [[1, 2, END], [3, 4, 5, 6, 7], [12, 13, 14, 15, END]]


def test_truncated_documents_do_not_end_and_padding_predicts_nothing():
    batch = make_batch(list(RowCutter(4, "truncate").rows(documents(2, 9))), 4, END, torch.ones(100).long())
    assert batch["input_ids"].tolist() == [[1, 2, END, END], [3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[2, END, IGNORED, IGNORED], [4, 5, 6, 7]]
    assert batch["target_bytes"].tolist() == [2, 4]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_packing_loses_no_token_and_predicts_each_once_except_across_documents():
    docs = documents(2, 9, 1, 30, 5, 7)
    cutter = RowCutter(4, "pack")
    rows = list(cutter.rows(docs))
    stream = np.concatenate(docs).tolist()
    assert [i for row in rows for i in row[:-1].tolist()] + cutter.partial.tolist() == stream
    batch = make_batch(rows, 4, END, torch.ones(100).long())
    inputs, labels = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist()
    for here, (i, label) in enumerate(zip(inputs, labels, strict=True)):
        assert label == (IGNORED if i == END else stream[here + 1])


def test_a_begun_row_goes_on_in_another_cutter():
    docs = documents(3, 6, 11, 2)
    whole = [row.tolist() for row in RowCutter(5, "pack").rows(docs)]
    first = RowCutter(5, "pack")
    rows = list(first.rows(docs[:2]))
    rows += RowCutter(5, "pack", first.partial.tolist()).rows(docs[2:])
    assert [row.tolist() for row in rows] == whole
