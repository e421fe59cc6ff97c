from collections.abc import Callable, Iterator

import pytest
from service_on_loopback import LoopbackService


@pytest.fixture
def start_service() -> Iterator[Callable[..., LoopbackService]]:
    started: list[LoopbackService] = []

    def start(*, listens: bool = True) -> LoopbackService:
        started.append(LoopbackService(listens=listens))
        return started[-1]

    yield start
    for service in started:
        service.close()


@pytest.fixture
def service(start_service: Callable[..., LoopbackService]) -> LoopbackService:
    return start_service()
