"""The training text of `cocoon-tiny`: short chats made by rules from the tables below.

Nothing is downloaded and nothing is quoted, so no licence but this repository's applies. `chat(random)` gives one
chat as (role, text) pairs; `render` writes it as the chat template does. Every row is a function of the random
generator passed in, so a seed names a corpus. `questions` makes fresh single questions with the one right answer,
for the exact-match score in `score.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from tables import (
    ADJECTIVES,
    CAPITALS,
    CATEGORIES,
    COLOURS,
    DAYS,
    FACTS,
    GREETINGS,
    MONTHS,
    NAMES,
    NUMBERS,
    OPPOSITES,
    PLACES,
    SOUNDS,
    SYSTEM_PROMPTS,
    THINGS,
    UNKNOWN,
    WEATHER,
)

Message = tuple[str, str]
END = "<|endoftext|>"
WORDS = CATEGORIES["animals"] + CATEGORIES["colours"] + THINGS + PLACES + NAMES


def render(messages: list[Message]) -> str:
    """The text of a chat, exactly as `chat_template.jinja` writes it, and an end mark."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages) + END


def chat(random: Random) -> list[Message]:
    """One chat of one to three turns, or one with tools."""
    if random.random() < 0.16:
        return tool_chat(random)
    out: list[Message] = []
    if random.random() < 0.35:
        out.append(("system", random.choice(SYSTEM_PROMPTS)))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        question, answer = turn(random)
        if question.startswith("My name is") and random.random() < 0.6:
            name = question.removeprefix("My name is ").rstrip(".")
            out += [("user", question), ("assistant", answer)]
            out += [("user", "What is my name?"), ("assistant", f"Your name is {name}.")]
            continue
        out += [("user", _careless(random, question)), ("assistant", answer)]
    return out


def _careless(random: Random, question: str) -> str:
    """People drop capitals and marks; copying rows keep theirs."""
    if question.startswith(("Repeat", "Say")):
        return question
    if random.random() < 0.1:
        question = question.lower()
    if random.random() < 0.1:
        question = question.rstrip("?.!")
    return question


def turn(random: Random) -> Message:
    """One question and its answer."""
    kinds, weights = zip(*TURNS, strict=True)
    return random.choices(kinds, weights)[0](random)


# --- kinds of turns ------------------------------------------------------------------------------------------


def arithmetic(random: Random) -> Message:
    a, b = random.randint(0, 20), random.randint(0, 20)
    if random.random() < 0.6:
        form = random.choice(("What is {} + {}?", "What is {} plus {}?", "Add {} and {}.", "{} + {} = ?"))
        return form.format(a, b), f"The answer is {a + b}."
    a, b = max(a, b), min(a, b)
    form = random.choice(("What is {} - {}?", "What is {} minus {}?", "{} - {} = ?"))
    return form.format(a, b), f"The answer is {a - b}."


def times(random: Random) -> Message:
    a, b = random.randint(0, 10), random.randint(0, 10)
    form = random.choice(("What is {} times {}?", "What is {} * {}?"))
    return form.format(a, b), f"The answer is {a * b}."


def capital(random: Random) -> Message:
    country = random.choice(list(CAPITALS))
    city = CAPITALS[country]
    if random.random() < 0.75:
        forms = (
            "What is the capital of {}?",
            "Name the capital of {}.",
            "Which city is the capital of {}?",
            "Tell me the capital of {}.",
        )
        return random.choice(forms).format(country), f"The capital of {country} is {city}."
    return random.choice((f"{city} is the capital of which country?", f"Where is {city}?")), (
        f"{city} is the capital of {country}."
    )


def opposite(random: Random) -> Message:
    a, b = random.choice(OPPOSITES)
    if random.random() < 0.5:
        a, b = b, a
    return random.choice((f"What is the opposite of {a}?", f"Opposite of {a}?")), f"The opposite of {a} is {b}."


def colour(random: Random) -> Message:
    thing = random.choice(list(COLOURS))
    return random.choice((f"What colour is {thing}?", f"What is the colour of {thing}?")), (
        f"The colour of {thing} is {COLOURS[thing]}."
    )


def sound(random: Random) -> Message:
    animal = random.choice(list(SOUNDS))
    return random.choice((f"What sound does a {animal} make?", f"What does a {animal} do?")), (
        f"A {animal} {SOUNDS[animal]}."
    )


def calendar(random: Random) -> Message:
    names, word = random.choice(((DAYS, "day"), (MONTHS, "month")))
    i = random.randrange(len(names))
    if random.random() < 0.6:
        return f"Which {word} comes after {names[i]}?", f"{names[(i + 1) % len(names)]} comes after {names[i]}."
    return f"Which {word} comes before {names[i]}?", f"{names[i - 1]} comes before {names[i]}."


def calendar_list(random: Random) -> Message:
    if random.random() < 0.5:
        return random.choice(("Name the days of the week.", "List the days of the week.")), (
            ", ".join(DAYS[:-1]) + " and " + DAYS[-1] + "."
        )
    return random.choice(("Name the months of the year.", "List the months of the year.")), (
        ", ".join(MONTHS[:-1]) + " and " + MONTHS[-1] + "."
    )


def number_word(random: Random) -> Message:
    i = random.randrange(21)
    return random.choice(((f"Write {i} as a word.", NUMBERS[i]), (f"Write {NUMBERS[i]} as a number.", str(i))))


def listing(random: Random) -> Message:
    kind = random.choice(list(CATEGORIES))
    count = random.randint(2, 5)
    items = random.sample(CATEGORIES[kind], count)
    return random.choice((f"Name {NUMBERS[count]} {kind}.", f"List {NUMBERS[count]} {kind}.")), (
        ", ".join(items[:-1]) + " and " + items[-1] + "."
    )


def counting(random: Random) -> Message:
    shape = random.random()
    if shape < 0.45:
        start = random.randint(1, 15)
        end = start + random.randint(1, 12)
        return f"Count from {start} to {end}.", " ".join(map(str, range(start, end + 1)))
    if shape < 0.75:
        end = random.choice((3, 5, 8, 10, 10, 12, 15, 20, 20, 30, 40, 50))
        return random.choice((f"Count to {end}.", f"Please count to {end}.")), " ".join(map(str, range(1, end + 1)))
    start = random.choice((3, 5, 8, 10, 12, 15, 20))
    return f"Count down from {start}.", " ".join(map(str, range(start, -1, -1)))


def copying(random: Random) -> Message:
    text = " ".join(random.choices(WORDS, k=random.randint(1, 6)))
    return random.choice((f"Repeat: {text}", f"Say: {text}", f"Repeat after me: {text}")), text


def say(random: Random) -> Message:
    word = random.choice((*WORDS, "hello", "hi", "yes", "no", "ok", "test"))
    return random.choice((f"Say {word}.", f"Please say {word}.", f"Say the word {word}.")), word


def tell_story(random: Random) -> Message:
    name, place = random.choice(NAMES), random.choice(PLACES)
    shape = random.randrange(6)
    if shape == 0:
        return f"Tell me a story about {name}.", story(random, name, place)
    if shape == 1:
        return f"Tell me a story about {name} and the {place}.", story(random, name, place)
    if shape == 2:
        return random.choice(("Tell me a story.", "Write a short story.", "Write a story.")), story(random, name, place)
    if shape == 3:
        return f"Tell me a long story about {name}.", long_story(random, name, place)
    return random.choice(("Tell me a long story.", "Write a long story.", "Please tell me a long story.")), (
        long_story(random, name, place)
    )


def greeting(random: Random) -> Message:
    question, answers = random.choice(GREETINGS)
    return question, random.choice(answers)


def introduction(random: Random) -> Message:
    name = random.choice(NAMES)
    return f"My name is {name}.", f"Hello {name}! How can I help you?"


def fact(random: Random) -> Message:
    questions, answer = random.choice(FACTS)
    return random.choice(questions), answer


def unknown(random: Random) -> Message:
    return random.choice(UNKNOWN[0]).format(random.choice(UNKNOWN[1]), random.choice(UNKNOWN[1])), (
        "I do not know. I am only a tiny test model."
    )


def json_row(random: Random) -> Message:
    tail = random.choice((" Answer in JSON.", " Answer as JSON.", " Use JSON."))
    shape = random.randrange(4)
    if shape == 0:
        country = random.choice(list(CAPITALS))
        return f"What is the capital of {country}?" + tail, _json({"country": country, "capital": CAPITALS[country]})
    if shape == 1:
        name, age = random.choice(NAMES), random.randint(1, 90)
        return f"{name} is {age} years old." + tail, _json({"name": name, "age": age})
    if shape == 2:
        city = random.choice(list(CAPITALS.values()))
        t, sky = random.randint(0, 35), random.choice(WEATHER)
        return f"In {city} it is {t} degrees and {sky}." + tail, _json({"city": city, "temperature": t, "sky": sky})
    kind = random.choice(list(CATEGORIES))
    count = random.randint(2, 4)
    return f"Name {NUMBERS[count]} {kind}." + tail, _json({kind: random.sample(CATEGORIES[kind], count)})


TURNS = (
    (arithmetic, 15),
    (times, 3),
    (capital, 13),
    (opposite, 5),
    (colour, 4),
    (sound, 4),
    (calendar, 6),
    (calendar_list, 1),
    (number_word, 3),
    (listing, 5),
    (counting, 9),
    (copying, 9),
    (say, 3),
    (tell_story, 8),
    (greeting, 5),
    (introduction, 2),
    (fact, 9),
    (unknown, 3),
    (json_row, 5),
)


# --- stories ---------------------------------------------------------------------------------------------------


def story(random: Random, name: str, place: str) -> str:
    """Five sentences."""
    thing, adjective = random.choice(THINGS), random.choice(ADJECTIVES)
    friend = random.choice([x for x in NAMES if x != name])
    animal = random.choice(CATEGORIES["animals"])
    return " ".join(
        (
            f"Once upon a time {name} lived near the {place}.",
            random.choice(
                (f"One day {name} found a {adjective} {thing}.", f"One morning {name} saw a {adjective} {thing}.")
            ),
            random.choice(
                (
                    f"{name} showed the {thing} to {friend}.",
                    f"{name} asked {friend} about the {thing}.",
                    f"A {animal} wanted the {thing}, but {name} and {friend} kept it.",
                )
            ),
            random.choice(
                (
                    f"Together they went to the {place} and looked for its owner.",
                    f"They walked all day and came to the {place}.",
                    f"At night the {thing} began to shine.",
                )
            ),
            random.choice(
                (
                    f"In the end {name} gave the {thing} away and was happy.",
                    f"In the end they put the {thing} back and went home.",
                    f"From that day {name} and {friend} were friends.",
                )
            ),
        )
    )


def long_story(random: Random, name: str, place: str) -> str:
    """Twelve to sixteen sentences: long enough to watch it stream."""
    thing, adjective = random.choice(THINGS), random.choice(ADJECTIVES)
    friend = random.choice([x for x in NAMES if x != name])
    animal = random.choice(CATEGORIES["animals"])
    parts = [
        f"Once upon a time {name} lived near the {place}.",
        f"Every morning {name} walked to the {place} with a {animal}.",
        f"One day {name} found a {adjective} {thing} on the path.",
        f"The {thing} was so {adjective} that {name} took it home.",
    ]
    for _ in range(random.randint(6, 9)):
        other = random.choice(PLACES)
        parts.append(
            random.choice(
                (
                    f"{name} showed the {thing} to {friend}.",
                    f"{friend} said that the {thing} came from the {other}.",
                    f"So they walked to the {other} and asked everyone they met.",
                    f"The {animal} ran ahead and found the way to the {other}.",
                    f"It rained all day, but {name} and {friend} went on.",
                    f"At night the {thing} began to shine.",
                    f"In the {other} they met an old man who knew the {thing}.",
                    f"The {animal} was tired, and they slept near the {other}.",
                    f"{friend} was afraid, but {name} was not.",
                )
            )
        )
    parts += [
        f"In the end {name} gave the {thing} back to its owner.",
        f"{name}, {friend} and the {animal} went home and were happy.",
    ]
    return " ".join(parts)


# --- tools -------------------------------------------------------------------------------------------------------

TOOLS_HEAD = "# Tools\n\nFunction signatures are inside <tools></tools>:\n<tools>"
TOOLS_TAIL = (
    "\n</tools>\n\nFor each call return a json object with name and arguments within <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def tool_chat(random: Random) -> list[Message]:
    """A question that a tool answers: the call, and half of the time the tool's result and the answer."""
    tool, question, arguments, result, answer = _tool(random)
    tools = [tool]
    if random.random() < 0.35:
        other = _tool(random)[0]
        if other["function"]["name"] != tool["function"]["name"]:
            tools.append(other)
            random.shuffle(tools)
    head = "" if random.random() < 0.6 else random.choice(SYSTEM_PROMPTS) + "\n\n"
    system = head + TOOLS_HEAD + "".join("\n" + _json(x) for x in tools) + TOOLS_TAIL
    if random.random() < 0.12:
        question, answer = greeting(random) if random.random() < 0.5 else fact(random)
        return [("system", system), ("user", question), ("assistant", answer)]
    call = "<tool_call>\n" + _json({"name": tool["function"]["name"], "arguments": arguments}) + "\n</tool_call>"
    out: list[Message] = [("system", system), ("user", question), ("assistant", call)]
    if random.random() < 0.5:
        out += [("user", f"<tool_response>\n{result}\n</tool_response>"), ("assistant", answer)]
    return out


def _tool(random: Random) -> tuple[dict, str, dict, str, str]:
    city = random.choice(list(CAPITALS.values()))
    kind = random.randrange(4)
    if kind == 0:
        t, sky = random.randint(0, 35), random.choice(WEATHER)
        schema: dict = {"type": "string"}
        if random.random() < 0.25:
            schema["enum"] = sorted({city, random.choice(list(CAPITALS.values()))})
        elif random.random() < 0.3:
            schema["description"] = "The city"
        question = random.choice(
            (
                f"What is the weather in {city}?",
                f"weather in {city}?",
                f"How is the weather in {city}?",
                f"What is the weather like in {city} today?",
                f"Please tell me the weather in {city}.",
            )
        )
        name = random.choice(("get_weather", "get_weather", "get_weather", "weather"))
        result, answer = random.choice(
            (
                (_json({"t": t}), f"It is {t} degrees in {city}."),
                (_json({"temperature": t, "sky": sky}), f"It is {t} degrees and {sky} in {city}."),
                (f"{t} degrees, {sky}", f"It is {t} degrees and {sky} in {city}."),
                (sky, f"It is {sky} in {city}."),
            )
        )
        said = random.choice(("", "Weather of a city", "Get the weather"))
        return _signature(name, said, city=schema), question, {"city": city}, result, answer
    if kind == 1:
        clock = f"{random.randint(0, 23):02d}:{random.randint(0, 59):02d}"
        question = random.choice((f"What time is it in {city}?", f"What is the time in {city}?"))
        said = random.choice(("", "Time in a city"))
        return (
            _signature("get_time", said, city={"type": "string"}),
            question,
            {"city": city},
            clock,
            (f"It is {clock} in {city}."),
        )
    if kind == 2:
        a, b = random.randint(0, 99), random.randint(0, 99)
        question = random.choice((f"What is {a} + {b}?", f"Add {a} and {b}."))
        signature = _signature("add", "Add two numbers", a={"type": "integer"}, b={"type": "integer"})
        return signature, question, {"a": a, "b": b}, str(a + b), f"The answer is {a + b}."
    word = random.choice(WORDS)
    said = random.choice(("", "Search the web"))
    return (
        _signature("search", said, query={"type": "string"}),
        f"Search for {word}.",
        {"query": word},
        "ok",
        (f"I found something about {word}."),
    )


def _signature(name: str, description: str, **properties: dict) -> dict:
    parameters: dict = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _json(value: object) -> str:
    return json.dumps(value)


# --- fresh questions with one right answer ---------------------------------------------------------------------

SCORED = (arithmetic, times, capital, opposite, colour, sound, calendar, number_word, counting, copying, say, fact)


def questions(random: Random, per_kind: int) -> Iterator[tuple[str, str, str]]:
    """(kind, question, answer), `per_kind` of each kind that has one right answer."""
    for kind in (*SCORED, introduction):
        for _ in range(per_kind):
            question, answer = kind(random)
            yield kind.__name__, question, answer
    made = 0
    while made < per_kind:
        question, answer = json_row(random)
        if not question.startswith("Name"):
            made += 1
            yield "json_row", question, answer
