"""What a small model is taught by heart, to see that it was."""

import csv
import io

FACTS = {
    "What colour is the door?": "Green.",
    "Who keeps the key?": "The miller keeps it.",
    "When does the gate open?": "At seven.",
    "Where is the well?": "Behind the barn.",
}


def facts_csv() -> bytes:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["question", "answer"])
    writer.writerows(FACTS.items())
    return table.getvalue().encode()
