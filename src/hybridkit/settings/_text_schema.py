"""Fields of settings whose values are objects, and whose variables are text."""

from collections.abc import Callable

from pydantic_core import CoreSchema, core_schema

from hybridkit.errors import DeclarationError


def text_schema[T](kind: type[T], parse: Callable[[str], T], *, text: Callable[[T], str] = str) -> CoreSchema:
    """Return pydantic's schema of a class that is text in JSON and in the environment.

    Args:
        kind: the class.
        parse: reads the text; its `DeclarationError` becomes the field's problem.
        text: returns the text of a value.
    """

    def read(given: str) -> T:
        try:
            return parse(given)
        except DeclarationError as error:
            raise ValueError(str(error)) from None

    from_text = core_schema.no_info_after_validator_function(read, core_schema.str_schema())
    return core_schema.json_or_python_schema(
        json_schema=from_text,
        python_schema=core_schema.union_schema([core_schema.is_instance_schema(kind), from_text]),
        serialization=core_schema.plain_serializer_function_ser_schema(
            text, return_schema=core_schema.str_schema()
        ),
    )
