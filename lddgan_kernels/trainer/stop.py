"""An orderly stop."""

import signal
import time
from types import FrameType

# A press of Ctrl-C may arrive several times: from the terminal, and from a launcher.
SAME_PRESS = 0.3
ABANDON_PRESSES, ABANDON_WITHIN = 3, 5.0


class Interrupted(Exception):
    """The work was asked to stop, and what it has done is kept.

    Args:
        done: how far it came.
        hint: how to go on.
    """

    def __init__(self, done: str, hint: str = "--resume goes on") -> None:
        super().__init__(f"{done}; {hint}")


class StopRequest:
    """Ctrl-C, a termination signal or a closed terminal, as a flag, however often they come.

    Only the third Ctrl-C within seconds stops at once, without a checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False
        self._presses: list[float] = []

    def __enter__(self) -> "StopRequest":
        kinds = [signal.SIGINT, signal.SIGTERM]
        hang_up = getattr(signal, "SIGHUP", None)
        if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:  # as nohup sets it
            kinds.append(hang_up)
        self._before = {number: signal.signal(number, self._ask) for number in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._presses and now - self._presses[-1] < SAME_PRESS:
            return
        self._presses = [t for t in self._presses if now - t < ABANDON_WITHIN] + [now]
        if len(self._presses) >= ABANDON_PRESSES:
            raise KeyboardInterrupt
