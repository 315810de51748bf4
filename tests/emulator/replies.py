"""What commands say: kinds of replies, each with the records that it was copied from, and the check that it was."""
import os
import re
import sys


class Kind:
    """`source`: "file" or "file#title", several with "|"; `out`, `err`: text with {places}; `exit`: code."""

    def __init__(self, source, out="", err="", exit=0):
        self.source, self.out, self.err, self.exit = source, out, err, exit


class Recorded:
    """A reply that is a record as it stands, of a command that changes nothing and asks for nothing of the test's."""

    def __init__(self, source):
        self.source = source

    def read(self, fixtures):
        """Standard output and exit code."""
        file, _, title = self.source.partition("#")
        with open(os.path.join(fixtures, file), encoding="utf-8") as record:
            text = record.read()
        if not title:
            return text, 0
        text = re.search(r"^#{2,3} " + re.escape(title) + r"$.*?^--- exit \d+", text, re.M | re.S).group()
        out, code = re.search(r"^--- stdout.*?\n(.*?)^--- stderr.*?^--- exit (\d+)", text, re.M | re.S).groups()
        return out, int(code)


FIXTURES = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../providers/tests/fixtures")


def say(kind, **places):
    """Prints a reply; gives its exit code. The only place that prints."""
    if isinstance(kind, Recorded):
        out, code = kind.read(FIXTURES)
        raw(out)
        return code
    sys.stdout.write(kind.out.format(**places))
    sys.stdout.flush()
    sys.stderr.write(kind.err.format(**places))
    sys.stderr.flush()
    return kind.exit


def raw(text):
    """Prints what no scheduler says: banners of sites, and halves of replies."""
    sys.stdout.write(text)
    sys.stdout.flush()


def sections(path):
    """Title, lines and exit code of each command of a record; of a plain file: one without a title."""
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    found, title, lines = [], "", []
    for line in text.splitlines():
        if re.match(r"#{2,3} ", line):
            title = line.lstrip("# ")
        elif line.startswith("--- exit "):
            found.append((title, lines, int(line.split()[2])))
            lines = []
        elif line.startswith("$ "):
            lines = []
        else:
            # A field of JSON is the same field as text: PBS prints both.
            json = re.fullmatch(r'\s*"([\w.]+)":\s*"?(.*?)"?,?', line)
            lines.append(line)
            if json:
                lines.append("    {} = {}".format(*json.groups()))
    return found or [("", text.splitlines(), 0)]


def check(fixtures, all_kinds):
    """Every line of every kind must be a line of the record that it names, places aside; its exit code must be that of the record."""
    wrong = []
    for kinds in all_kinds:
        for name, kind in kinds.items():
            if isinstance(kind, Recorded):
                kind.read(fixtures)
                continue
            recorded, codes = [], set()
            for source in kind.source.split("|"):
                file, _, title = source.partition("#")
                path = os.path.join(fixtures, file)
                if not os.path.exists(path):
                    wrong.append(f"{name}: there is no record {file}")
                    continue
                fits = [s for s in sections(path) if not title or s[0] == title]
                if not fits:
                    wrong.append(f"{name}: {file} has nothing titled {title!r}")
                for _, lines, code in fits:
                    recorded += lines
                    codes.add(code)
            if kind.exit not in codes:
                wrong.append(f"{name}: exit code {kind.exit} is not in {kind.source}: {codes}")
            for line in (kind.out + kind.err).splitlines():
                parts = re.split(r"\{\w+[^}]*\}", line.rstrip())
                pattern = re.compile(".*?".join(re.escape(p) for p in parts) + r"\s*")
                if line.strip() and not any(pattern.fullmatch(r) for r in recorded):
                    wrong.append(f"{name}: no line of {kind.source} is like {line!r}")
    for line in wrong:
        sys.stderr.write(line + "\n")
    return 1 if wrong else 0
