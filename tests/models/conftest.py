"""What every test of the models uses."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> Iterator[None]:
    """OpenMP's threads wait for each other by spinning: on busy cores a hundred times slower than one thread.

    Nor do sums come out the same in a child that trains on another number of them.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
