"""How cores and GPUs are divided among a population's members."""

from __future__ import annotations

import pytest

from edgetune.tune.share import member_share

FOUR = {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("machines", "workers", "share"),
    [
        ([FOUR], 4, {"CPU": 1.0, "GPU": 1.0}),
        ([FOUR], None, {"CPU": 1.0, "GPU": 1.0}),
        ([FOUR] * 4, 16, {"CPU": 1.0, "GPU": 1.0}),
        ([FOUR], 8, {"CPU": 1.0, "GPU": 0.5}),
        ([FOUR] * 2, 9, {"CPU": 6.0, "GPU": 0.5}),  # ten; with fewer cores it would be sixteen
        ([{"CPU": 8.0, "GPU": 1.0}], 2, {"CPU": 1.0, "GPU": 0.5}),
        ([{"CPU": 2.0, "GPU": 4.0}], 4, {"CPU": 0.5, "GPU": 1.0}),
        ([{"CPU": 1.0, "GPU": 2.0}], 1, {"CPU": 1.0, "GPU": 1.0}),  # as this machine is offered
        ([FOUR], 2, {"CPU": 16.0, "GPU": 1.0}),  # or all four GPUs would be taken
        ([{"CPU": 64.0}, {"CPU": 2.0, "GPU": 2.0}], 2, {"CPU": 1.0, "GPU": 1.0}),
        ([{"CPU": 2.0}], 2, {"CPU": 1.0}),
        ([{"CPU": 9.0}], 2, {"CPU": 4.0}),
        ([{"CPU": 2.0}], 4, {"CPU": 0.5}),
        ([{"CPU": 16.0}] * 4, None, {"CPU": 16.0}),
        ([{"CPU": 16.0}] * 4, 2, {"CPU": 16.0}),  # a half of all cores is on no machine
        ([{"CPU": 8.0}, {"CPU": 2.0}], 2, {"CPU": 4.0}),
    ],
)
def test_each_member_takes_a_gpu_or_its_part_of_the_cores_and_fits_on_a_machine(machines, workers, share):
    assert member_share(machines, workers) == pytest.approx(share)


@pytest.mark.parametrize("workers", range(1, 20))
@pytest.mark.parametrize("machines", [[FOUR], [FOUR, {"CPU": 8.0, "GPU": 1.0}], [{"CPU": 16.0}, {"CPU": 3.0}]])
def test_as_many_members_as_workers_have_room_at_the_same_time(machines, workers):
    share = member_share(machines, workers)
    rooms = [min(int(machine.get(name, 0) / part + 1e-9) for name, part in share.items()) for machine in machines]
    assert sum(rooms) >= workers
