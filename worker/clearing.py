"""Making room on devices: the models served from them are unloaded before a step starts there.

From the moment of the claim the API refuses chat with them, so what is being answered comes to an end by
itself; it is waited for, but not for ever. Which models there were is kept in the devices' rows: once
nothing holds these, the sweep loads them again, whatever has become of the worker by then.
"""

import threading
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from db.errors import InvalidInput, LatheError, NotFound, Unavailable
from db.models import AttemptDevice, Device
from db.session import SessionFactory, transaction
from db.settings import Settings
from serving import devices
from serving.chat_server import ModelServer, chat_server
from worker.claim import Claim
from worker.lease import hold_fence
from worker.step import Message

# Beyond the patience with answers: what ends a model's process has ended it by then.
GIVE_UP_AFTER_SECONDS = 30

log = structlog.get_logger(__name__)


def makes_room(settings: Settings, device: devices.Device) -> bool:
    """Whether served models have to leave this device before a step starts there."""
    return serves_from(settings, device) and not settings.share_device


def serves_from(settings: Settings, device: devices.Device) -> bool:
    """Whether the chat server keeps its models on this device."""
    return devices.is_named(device, settings.serving_device)


class Clearing:
    """The chat server's models leave the devices of one attempt. No call takes longer than seconds.

    Args:
        cleared: of the devices, those that models are served from.
        note: keeps the names of models before they are unloaded.
    """

    def __init__(
        self,
        settings: Settings,
        server: ModelServer,
        cleared: Sequence[devices.Device],
        note: Callable[[list[str]], object],
    ) -> None:
        self._server = server
        self._devices = ", ".join(map(str, cleared))
        self._note = note
        self._patience_seconds = settings.unload_patience_seconds
        self._patient_until = time.monotonic() + self._patience_seconds
        self._away_seconds = settings.lease_seconds
        self._away_until = time.monotonic() + self._away_seconds
        self._unloaded: list[str] = []
        self._cut_off: list[str] = []
        self._messages: list[Message] = []

    def told(self) -> list[Message]:
        """What the job's user is to be told since the last time."""
        told, self._messages = self._messages, []
        return told

    def go_on(self) -> bool:
        """Do what can be done now. Returns whether all is done."""
        try:
            loaded = self._server.loaded_models()
            if not loaded:
                self._tell()
                return True
            if time.monotonic() > self._patient_until + GIVE_UP_AFTER_SECONDS:
                self._warn(f"{', '.join(loaded)} could not be unloaded from {self._devices}.")
                return True
            self._unload(loaded)
        except Unavailable as error:
            if time.monotonic() > self._away_until:
                return self._give_up(error)
        except (NotFound, InvalidInput) as error:
            return self._give_up(error)
        else:
            self._away_until = time.monotonic() + self._away_seconds
        return False

    def _give_up(self, error: LatheError) -> bool:
        self._warn(f"Whether {self._devices} is free of served models is not known: {error.message}")
        return True

    def keep_clear(self) -> None:
        """Unload again what was loaded since: by a request that came an instant before, or around the API."""
        try:
            loaded = self._server.loaded_models()
            for name in loaded:
                self._server.unload(name)
        except LatheError as error:
            log.warning("chat_server_away", error=error.message)
            return
        if loaded:
            self._note(loaded)
            self._warn(f"{', '.join(loaded)} had been loaded on {self._devices} again, and was unloaded.")

    def _unload(self, loaded: list[str]) -> None:
        new = [name for name in loaded if name not in self._unloaded]
        if new:
            self._note(new)
            self._unloaded += new
        for name in loaded:
            if self._server.is_answering(name):
                if time.monotonic() < self._patient_until:
                    continue
                if name not in self._cut_off:
                    self._cut_off.append(name)
            self._server.unload(name)

    def _tell(self) -> None:
        if self._unloaded:
            names = ", ".join(self._unloaded)
            message = f"Unloaded {names} from {self._devices}: chat is refused until this step has ended."
            self._say("info", message, unloaded=self._unloaded)
        if self._cut_off:
            names = ", ".join(self._cut_off)
            self._warn(
                f"Answers of {names} were cut off: they had not ended after {self._patience_seconds:g} s."
            )

    def _warn(self, message: str) -> None:
        self._say("warn", message)

    def _say(self, level: str, message: str, **data: object) -> None:
        self._messages.append({"type": "event", "level": level, "message": message, "data": data})


def note_unloaded(session: Session, claim: Claim, names: list[str]) -> None:
    """Keep the names of models that are to be loaded again; some may wait for it since before.

    Raises:
        LeaseLost: the attempt no longer holds its device.
    """
    hold_fence(session, claim)
    served_from = select(Device).where(Device.id.in_(claim.device_ids), Device.serves.is_not(None))
    for device in session.scalars(served_from.order_by(Device.id).with_for_update(key_share=True)):
        device.unloaded = list(dict.fromkeys([*device.unloaded, *names]))


def load_again(settings: Settings, factory: SessionFactory) -> list[str]:
    """Have the models loaded again whose devices nothing holds any more. Returns their names at once.

    One that cannot be loaded now is loaded when it is asked for.
    """
    with transaction(factory) as session:
        served_from = aliased(Device)
        held = exists().where(
            AttemptDevice.device_id == served_from.id,
            AttemptDevice.open,
            served_from.serves == settings.chat_backend,
        )
        query = select(Device).where(Device.unloaded != [], Device.serves == settings.chat_backend, ~held)
        free = session.scalars(query.with_for_update(key_share=True, skip_locked=True)).all()
        names = list(dict.fromkeys(name for device in free for name in device.unloaded))
        for device in free:
            device.unloaded = []
    if names:
        threading.Thread(target=_load, args=(settings, names), name="load-again", daemon=True).start()
    return names


def _load(settings: Settings, names: list[str]) -> None:
    with chat_server(settings) as server:
        for name in names:
            try:
                server.load(name)
            except LatheError as error:
                log.warning("model_not_loaded_again", model=name, error=error.message)
