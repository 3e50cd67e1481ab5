"""A multipart body read as it comes, by python-multipart's parser: nothing is spooled or held back.

Frameworks' own form parsers write an upload to a temporary file first, so that it is written twice and
needs twice the room.
"""

from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from db.errors import InvalidInput

FIELD_BYTES = 1000
PARTS = 20
BROKEN = "The multipart body is broken"


@dataclass(frozen=True)
class FilePart:
    """The head of the part that is the file."""

    filename: str


@dataclass(frozen=True)
class Bytes:
    """Some of the file's bytes."""

    data: bytes


class FormReader:
    """Reads a form of small fields and one file.

    Args:
        content_type: the request's, with the boundary.
        part: how the part that is the file is named.
    Raises:
        InvalidInput: there is no boundary.
    """

    def __init__(self, content_type: str, part: str = "file") -> None:
        self._file_part = part
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise InvalidInput("The content-type names no boundary.", param="content-type")
        self.fields: dict[str, str] = {}
        self._found: list[FilePart | Bytes] = []
        self._ended = False
        self._parts = 0
        self._headers: dict[str, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._name = ""
        self._value: bytearray | None = None  # of a small field; None while the file's bytes come
        self._has_file = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_part,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except MultipartParseError as error:
            raise InvalidInput(f"{BROKEN}: {error}.", param=self._file_part) from error

    def feed(self, data: bytes) -> list[FilePart | Bytes]:
        """Take some of the body; return what of the file was in it.

        Raises:
            InvalidInput: it is no multipart body, or has parts that the form does not.
        """
        self._found = []
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise InvalidInput(f"{BROKEN}: {error}.", param=self._file_part) from error
        return self._found

    def finish(self) -> None:
        """Check that the whole form came.

        Raises:
            InvalidInput: it was cut short, or has no file.
        """
        if not self._ended:
            raise InvalidInput(f"{BROKEN}: it ends before its last boundary.", param=self._file_part)
        if not self._has_file:
            raise InvalidInput(
                f"The form has no file: send it as the part named `{self._file_part}`.", param=self._file_part
            )

    def _part_begin(self) -> None:
        self._parts += 1
        self._headers = {}
        if self._parts > PARTS:
            raise InvalidInput(f"The form has more than {PARTS} parts.", param=self._file_part)

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_part(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise InvalidInput(f"{BROKEN}: a part has no name.", param=self._file_part)
        self._name = options[b"name"].decode(errors="replace")
        if self._name != self._file_part:
            if b"filename" in options:
                raise InvalidInput(
                    f"The file is sent as the part named `{self._file_part}`, not {self._name!r}.",
                    param=self._file_part,
                )
            self._value = bytearray()
            return
        if self._has_file:
            raise InvalidInput("The form has two files: send one a request.", param=self._file_part)
        self._has_file, self._value = True, None
        self._found.append(FilePart(options.get(b"filename", b"").decode(errors="replace")))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._found.append(Bytes(data[start:end]))
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise InvalidInput(f"{self._name} is longer than {FIELD_BYTES} bytes.", param=self._name)

    def _part_end(self) -> None:
        if self._value is not None:
            self.fields[self._name] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self._ended = True
