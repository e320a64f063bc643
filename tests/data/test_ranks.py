"""Two real ranks (gloo) share the global order, and a place moves between one rank and two."""

import torch
from batches import train_on_ids
from torch import distributed, multiprocessing

from elas_lightning.data import C4DataModule


def run_rank(rank, folder, arguments, state_of_one):
    torch.set_num_threads(1)
    # as in a rank that a launcher started; else workers would be asked of a server of its own, which imports everything
    multiprocessing.set_start_method("fork", force=True)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        results = {}
        for workers in (0, 2):
            data = C4DataModule(**arguments, num_workers=workers)
            data.setup("fit")
            results[f"train {workers}"] = train_on_ids(data, 70)
            results[f"state {workers}"] = data.state_dict()
            data = C4DataModule(**arguments, num_workers=workers)
            data.load_state_dict(state_of_one)
            results[f"resumed {workers}"] = train_on_ids(data, 4)
        results["validation"] = list(data.val_dataloader())
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def test_two_ranks_take_turns_in_the_global_order_and_resume_each_other(make_data, corpus, tokenizer_file, tmp_path):
    data = make_data()
    arguments = {name: getattr(data, name) for name in ("source", "path", "tokenizer", "sequence_length", "batching")}
    arguments |= {name: getattr(data, name) for name in ("batch_size", "lanes", "shuffle_block", "cache_dir")}
    whole = train_on_ids(make_data(), 160)
    one = make_data()
    train_on_ids(one, 7)  # an odd number: the two ranks begin in the middle of a pair
    # forked by a server that has imported everything, as the runs of a sweep are
    ranks = (run_rank, (str(tmp_path), arguments, one.state_dict()))
    multiprocessing.start_processes(*ranks, nprocs=2, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    for workers in (0, 2):
        for rank in range(2):
            for step, input_ids in enumerate(ranks[rank][f"train {workers}"]):
                assert input_ids == whole[2 * step + rank]
        assert ranks[0][f"state {workers}"] == ranks[1][f"state {workers}"]
        assert ranks[0][f"state {workers}"]["next_micro_batch"] == 140
        again = make_data()
        again.load_state_dict(ranks[0][f"state {workers}"])
        assert train_on_ids(again, 20) == whole[140:]
        # Micro-batch 7 is rank 1's (7 mod 2), so rank 0 begins with 8.
        for rank, first in ((1, 7), (0, 8)):
            for step, input_ids in enumerate(ranks[rank][f"resumed {workers}"]):
                assert input_ids == whole[first + 2 * step]

    alone = torch.cat([batch["input_ids"] for batch in make_data().val_dataloader()])
    shares = [torch.cat([batch["input_ids"] for batch in ranks[rank]["validation"]]) for rank in range(2)]
    assert torch.equal(shares[0], alone[0::2])
    assert torch.equal(shares[1][: len(alone) // 2], alone[1::2])
