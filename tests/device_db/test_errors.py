"""One exception tree: everything is exported, described and has an exit code."""

import inspect

from bignas.device_db import errors


def classes() -> list[type[errors.BignasError]]:
    return [
        item
        for _, item in inspect.getmembers(errors, inspect.isclass)
        if item.__module__ == errors.__name__ and issubclass(item, errors.BignasError)
    ]


def test_every_error_is_exported_and_in_the_tree() -> None:
    assert sorted(item.__name__ for item in classes()) == errors.__all__
    assert all(item.__name__ in str(errors.__doc__) for item in classes())


def test_a_users_mistake_exits_with_2_and_a_failure_with_1() -> None:
    for item in classes():
        assert item.exit_code == (2 if issubclass(item, errors.InputError) else 1)
