"""Migrations go up, down and up again, and say the same as the models."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from alembic import command
from sqlalchemy import create_engine, inspect, text

import migrations

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


def test_up_down_up_leaves_what_the_models_say(postgres_server: "PostgresServer") -> None:
    name = f"migrations_{secrets.token_hex(4)}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    url = postgres_server.url(name)
    engine = create_engine(url)
    migrations.upgrade(url)
    command.downgrade(migrations.config(engine), "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    migrations.upgrade(url)
    command.check(migrations.config(engine))
    engine.dispose()


def test_two_at_once_take_turns(postgres_server: "PostgresServer") -> None:
    name = f"migrations_{secrets.token_hex(4)}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    url = postgres_server.url(name)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(migrations.upgrade, [url, url]))
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM models")).scalars().all() == ["tiny"]
    engine.dispose()
