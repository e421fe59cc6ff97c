"""A disk that hangs: nothing less brings a real one to it without root."""

import threading

from lossguard.journal.files import LocalFiles


class HangingDisk(LocalFiles):
    """Answers no write before it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()

    def append(self, file: int, data: memoryview) -> int:
        self.begun.set()
        self.let_go.wait()
        return super().append(file, data)
