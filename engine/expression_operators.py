"""The operators of expressions, and the methods that only apply a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from millstream.engine.errors import JobError
from millstream.engine.expression_methods import TextMethods, TimeMethods
from millstream.engine.expression_types import data_type, did_you_mean, literal_array

if TYPE_CHECKING:
    from millstream.engine.expression_tree import Expr


class Operators(ABC):
    """What can be written with expressions; kept apart from the tree, for which it stands in."""

    @abstractmethod
    def apply(self, function: str, *others: Any, **options: Any) -> Expr:
        """Apply one of the engine's own functions to this and other values."""

    @abstractmethod
    def after(self, function: str, first: Any) -> Expr:
        """Apply a function to another value and this."""

    # -- operators ---------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Expr:
        return self.apply("add", other)

    def __radd__(self, other: Any) -> Expr:
        return self.after("add", other)

    def __sub__(self, other: Any) -> Expr:
        return self.apply("subtract", other)

    def __rsub__(self, other: Any) -> Expr:
        return self.after("subtract", other)

    def __mul__(self, other: Any) -> Expr:
        return self.apply("multiply", other)

    def __rmul__(self, other: Any) -> Expr:
        return self.after("multiply", other)

    def __truediv__(self, other: Any) -> Expr:
        return self.apply("divide", other)

    def __rtruediv__(self, other: Any) -> Expr:
        return self.after("divide", other)

    def __floordiv__(self, other: Any) -> Expr:
        return self.apply("floor_divide", other)

    def __rfloordiv__(self, other: Any) -> Expr:
        return self.after("floor_divide", other)

    def __mod__(self, other: Any) -> Expr:
        return self.apply("modulo", other)

    def __rmod__(self, other: Any) -> Expr:
        return self.after("modulo", other)

    def __pow__(self, other: Any) -> Expr:
        return self.apply("power", other)

    def __rpow__(self, other: Any) -> Expr:
        return self.after("power", other)

    def __neg__(self) -> Expr:
        return self.apply("negate")

    def __abs__(self) -> Expr:
        return self.apply("abs")

    def __hash__(self) -> int:
        return hash(str(self))

    def __eq__(self, other: object) -> Expr:  # type: ignore[override]
        return self.apply("equal", self._not_none(other))

    def __ne__(self, other: object) -> Expr:  # type: ignore[override]
        return self.apply("not_equal", self._not_none(other))

    def __lt__(self, other: Any) -> Expr:
        return self.apply("less", other)

    def __le__(self, other: Any) -> Expr:
        return self.apply("less_equal", other)

    def __gt__(self, other: Any) -> Expr:
        return self.apply("greater", other)

    def __ge__(self, other: Any) -> Expr:
        return self.apply("greater_equal", other)

    def __and__(self, other: Any) -> Expr:
        return self.apply("and", other)

    def __rand__(self, other: Any) -> Expr:
        return self.after("and", other)

    def __or__(self, other: Any) -> Expr:
        return self.apply("or", other)

    def __ror__(self, other: Any) -> Expr:
        return self.after("or", other)

    def __invert__(self) -> Expr:
        return self.apply("not")

    # -- further methods ---------------------------------------------------------------------------------------

    def abs(self) -> Expr:
        """Its absolute value."""
        return self.apply("abs")

    def cast(self, type: Any) -> Expr:
        """Convert it: ``.cast("int64")``, ``.cast(float)``, ``.cast(pa.timestamp("us"))``.

        A value that would change (1.5 to an integer, text that is no number) is a DataError when it comes.
        """
        return self.apply("cast", to=data_type(type))

    def is_null(self) -> Expr:
        """Whether it is null."""
        return self.apply("is_null")

    def is_not_null(self) -> Expr:
        """Whether it is not null."""
        return self.apply("is_not_null")

    def fill_null(self, value: Any) -> Expr:
        """Put a literal or another expression where it is null."""
        return self.apply("fill_null", value)

    def is_in(self, values: Iterable[Any]) -> Expr:
        """Whether it equals one of these literals.

        >>> from millstream.engine.expression import col
        >>> col("state").is_in(["or", "id", "ca"])
        is_in(state, values=['or', 'id', 'ca'])
        """
        if isinstance(values, (str, bytes, Operators)):
            raise JobError(f"is_in() takes a list of values, got {values!r}")
        return self.apply("is_in", values=literal_array(list(values)))

    def between(self, low: Any, high: Any) -> Expr:
        """Whether ``low <= it <= high``."""
        return self.apply("greater_equal", low).apply("and", self.apply("less_equal", high))

    def _not_none(self, other: Any) -> Any:
        if other is None:
            raise JobError(
                f"{self} compared with None is null for every row, as in SQL: write .is_null() or .is_not_null()"
            )
        return other

    def __contains__(self, item: Any) -> NoReturn:
        raise JobError(
            f"{item!r} in {self}: write .str.contains({item!r}) for text, .is_in([...]) for a list of values"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: Any) -> NoReturn:
            for accessor, methods in (("str", TextMethods), ("dt", TimeMethods)):
                if not name.startswith("_") and hasattr(methods, name):
                    raise AttributeError(f"an expression has no {name!r}: write .{accessor}.{name}(...)")
            raise AttributeError(f"an expression has no {name!r}{did_you_mean(name, dir(Operators))}")

    # The class ends with this: from here on it has a member called str, which hides the type.

    @property
    def dt(self) -> TimeMethods:
        """What can be asked of dates and times."""
        return TimeMethods(self)  # type: ignore[arg-type]

    @property
    def str(self) -> TextMethods:
        """What can be asked of text."""
        return TextMethods(self)  # type: ignore[arg-type]
