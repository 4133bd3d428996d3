"""Statements on datasets and their files. One function a statement."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from clara_results.store.schema import dataset_files, datasets
from clara_results.store.statements import Row, upsert


def touch(connection: sa.Connection, values: Mapping[str, Any]) -> Row:
    """Note that a dataset is being uploaded to, and keep all others from it until this transaction ends; return it.

    Args:
        connection: Within a transaction.
        values: Columns of one that is not known yet; of one that is only ``touched_at`` is changed.
    """
    new = upsert(datasets).values(**values)
    touched = new.on_conflict_do_update(
        index_elements=["dataset_id"], set_={"touched_at": new.excluded.touched_at}
    )
    return connection.execute(touched.returning(*datasets.c)).one()


def note_file(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    """Note a file of a dataset; one that is known already stays as it is: its URI bears its digest."""
    connection.execute(upsert(dataset_files).values(**values).on_conflict_do_nothing())


def files_of(connection: sa.Connection, dataset: int) -> Sequence[Row]:
    """Return all files of a dataset, listed in what was published or not."""
    found = sa.select(dataset_files).where(dataset_files.c.dataset == dataset)
    return connection.execute(found).all()


def forget_files(connection: sa.Connection, dataset: int, uris: Iterable[str]) -> None:
    """Forget files of a dataset."""
    gone = dataset_files.delete().where(
        dataset_files.c.dataset == dataset, dataset_files.c.uri == sa.bindparam("gone")
    )
    rows = [{"gone": uri} for uri in uris]
    if rows:
        connection.execute(gone, rows)


def set_dataset(connection: sa.Connection, dataset: int, values: Mapping[str, Any]) -> None:
    """Change what is noted of a dataset."""
    connection.execute(datasets.update().where(datasets.c.id == dataset).values(**values))


def published(connection: sa.Connection, dataset_id: str) -> Row | None:
    """Return a published dataset."""
    found = sa.select(datasets).where(
        datasets.c.dataset_id == dataset_id, datasets.c.published_at.is_not(None)
    )
    return connection.execute(found).one_or_none()


def published_file(connection: sa.Connection, dataset_id: str, uri: str) -> Row | None:
    """Return a file of a published dataset."""
    found = (
        sa.select(dataset_files)
        .join(datasets, datasets.c.id == dataset_files.c.dataset)
        .where(
            datasets.c.dataset_id == dataset_id,
            datasets.c.published_at.is_not(None),
            dataset_files.c.uri == uri,
        )
    )
    return connection.execute(found).one_or_none()


def page(
    connection: sa.Connection, where: Mapping[str, str | None], cursor: int | None, limit: int
) -> Sequence[Row]:
    """Return published datasets, newest first.

    Args:
        connection: Within a transaction.
        where: Columns and what they must equal; None: anything.
        cursor: Only those older than the one of this id.
        limit: At most so many.
    """
    found = sa.select(datasets).where(datasets.c.published_at.is_not(None))
    for name, value in where.items():
        if value is not None:
            found = found.where(datasets.c[name] == value)
    if cursor is not None:
        found = found.where(datasets.c.id < cursor)
    return connection.execute(found.order_by(datasets.c.id.desc()).limit(limit)).all()


def lock(connection: sa.Connection, dataset_id: str) -> Row | None:
    """Return a dataset, published or not, and keep all others from it until this transaction ends."""
    found = sa.select(datasets).where(datasets.c.dataset_id == dataset_id)
    return connection.execute(found.with_for_update()).one_or_none()


def due(
    connection: sa.Connection, published: datetime | None, unpublished: datetime, limit: int
) -> Sequence[str]:
    """Return ids of datasets whose time is over, those not touched for longest first.

    Args:
        connection: Within a transaction.
        published: The moment since which one that is published was not touched; None: they are kept.
        unpublished: The moment since which one that is not published was not touched.
        limit: At most so many.
    """
    late = sa.and_(datasets.c.published_at.is_(None), datasets.c.touched_at <= unpublished)
    if published is not None:
        late = sa.or_(late, datasets.c.touched_at <= published)
    found = sa.select(datasets.c.dataset_id).where(late)
    return connection.scalars(found.order_by(datasets.c.touched_at).limit(limit)).all()


def delete(connection: sa.Connection, dataset: int) -> None:
    """Forget a dataset and its files."""
    connection.execute(datasets.delete().where(datasets.c.id == dataset))
