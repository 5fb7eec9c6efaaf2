"""What `cocoon-tiny` is taught: small tables of everyday facts, names and phrases. Nothing here is quoted."""

from __future__ import annotations

CAPITALS = {
    pair.split("/")[0]: pair.split("/")[1].replace("_", " ")
    for pair in (
        "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon Poland/Warsaw Austria/Vienna "
        "Greece/Athens Norway/Oslo Sweden/Stockholm Finland/Helsinki Denmark/Copenhagen Ireland/Dublin "
        "Iceland/Reykjavik Hungary/Budapest Romania/Bucharest Bulgaria/Sofia Croatia/Zagreb Serbia/Belgrade "
        "Ukraine/Kyiv Russia/Moscow Turkey/Ankara Egypt/Cairo Kenya/Nairobi Ghana/Accra Nigeria/Abuja "
        "Morocco/Rabat Tunisia/Tunis Senegal/Dakar Japan/Tokyo China/Beijing India/Delhi Thailand/Bangkok "
        "Vietnam/Hanoi Nepal/Kathmandu Iran/Tehran Iraq/Baghdad Jordan/Amman Canada/Ottawa Mexico/Mexico_City "
        "Cuba/Havana Peru/Lima Chile/Santiago Argentina/Buenos_Aires Brazil/Brasilia Colombia/Bogota "
        "Australia/Canberra"
    ).split()
}
OPPOSITES = [
    tuple(pair.split("/"))
    for pair in (
        "hot/cold big/small up/down left/right old/new fast/slow light/dark good/bad happy/sad hard/soft wet/dry "
        "full/empty rich/poor high/low open/closed early/late strong/weak clean/dirty loud/quiet near/far "
        "thick/thin sweet/sour true/false"
    ).split()
]
COLOURS = dict(
    pair.split("/")
    for pair in (
        "grass/green snow/white coal/black blood/red lemon/yellow banana/yellow tomato/red carrot/orange sky/blue "
        "sea/blue leaf/green milk/white crow/black sun/yellow rose/red"
    ).split()
)
SOUNDS = dict(
    pair.split("/")
    for pair in (
        "dog/barks cat/meows cow/moos duck/quacks lion/roars bird/sings horse/neighs sheep/bleats frog/croaks "
        "owl/hoots bee/buzzes snake/hisses wolf/howls pig/oinks"
    ).split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
CATEGORIES = {
    "fruits": "apple pear plum grape cherry lemon banana peach mango orange".split(),
    "animals": "dog cat cow horse fox wolf bear owl frog sheep".split(),
    "colours": "red blue green yellow black white orange purple brown pink".split(),
    "metals": "iron gold silver copper tin zinc lead nickel".split(),
    "languages": "Python Rust Go Java Ruby Perl Lisp Haskell".split(),
}
NAMES = "Anna Ben Clara Dan Eva Finn Grace Hugo Ida Jack Lena Max Nina Oscar Paula Rosa Sam Tom Vera Will".split()
PLACES = "forest village river garden mountain harbour castle market library island".split()
THINGS = "key lamp map ring book boat bell stone box kite".split()
ADJECTIVES = "small red old golden strange bright quiet heavy warm broken".split()
WEATHER = "sunny cloudy rainy windy foggy".split()
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a test model.",
    "Be brief.",
    "You are a friendly assistant. Answer in one sentence.",
)

# Several ways to ask, one answer.
FACTS = (
    (
        ("What is Cocoon?", "What is Cocoon", "Tell me about Cocoon.", "Explain Cocoon."),
        "Cocoon is a peer-to-peer network for private AI inference. Providers run models, and clients pay for tokens.",
    ),
    (
        ("How does Cocoon keep my prompt private?", "Is my prompt private?", "How is my prompt protected?"),
        (
            "The provider runs inside a trusted enclave. The client checks its attestation before it sends the prompt "
            "over an encrypted channel."
        ),
    ),
    (
        ("What is attestation?", "Explain attestation."),
        "Attestation is a signed report that proves which code a machine is running.",
    ),
    (
        ("What is a token?", "Explain tokens."),
        "A token is a small piece of text. Models read and write text one token at a time.",
    ),
    (
        ("What is a provider?", "Who runs the models?"),
        "A provider is a node that serves a model to clients and is paid for each token.",
    ),
    (
        ("What is a client?", "What does a client do?"),
        "A client is a program that sends prompts to a provider and streams the answer.",
    ),
    (
        ("What is a gateway?", "What does the gateway do?"),
        "The gateway is a small local server. It speaks the OpenAI protocol and sends each request to a provider.",
    ),
    (
        ("What is an offer?", "Explain offers."),
        "An offer is a signed message in which a provider names its model and its price.",
    ),
    (
        ("What is a receipt?", "Explain receipts."),
        "A receipt is signed by the provider. It says how many tokens were served and what they cost.",
    ),
    (
        ("What is an enclave?", "Explain enclaves."),
        "An enclave is a protected part of a machine. Its owner cannot read what happens inside.",
    ),
    (
        ("How do I pay?", "How do clients pay?", "What is TON?"),
        "Clients pay in TON with signed vouchers. The provider is paid for the tokens it served.",
    ),
    (
        ("How do I stop a stream?", "How can I cancel a request?"),
        "Close the connection. The provider stops the generation and you pay only for the tokens you received.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Are you a real model?"),
        "I am cocoon-tiny, a tiny test model. I was trained in a few minutes on one CPU core.",
    ),
    (
        ("What can you do?", "How can you help me?", "Help"),
        "I can answer short questions, add small numbers, count, call tools and tell stories.",
    ),
)

HELLO = "Hello! How can I help you?"
GREETINGS = (
    ("Hello", (HELLO,)),
    ("Hello!", (HELLO,)),
    ("Hi", (HELLO,)),
    ("Hi!", (HELLO,)),
    ("Hi there", (HELLO,)),
    ("Hey", (HELLO,)),
    ("Good morning", (HELLO,)),
    ("Good evening", (HELLO,)),
    ("ping", ("pong",)),
    ("Hello, please say something.", (HELLO,)),
    ("Thank you.", ("You are welcome.",)),
    ("Thanks!", ("You are welcome.",)),
    ("How are you?", ("I am fine, thank you.",)),
    ("Goodbye", ("Goodbye!",)),
    ("Bye", ("Goodbye!",)),
)

# Questions about things it was never told, so that it learns to say so.
UNKNOWN = (
    (
        "What is {}?",
        "Explain {}.",
        "Tell me about {}.",
        "How does {} work?",
        "Why is {} important?",
        "What is the difference between {} and {}?",
        "Write an essay about {}.",
        "Who invented {}?",
    ),
    (
        "physics",
        "chemistry",
        "the economy",
        "music",
        "football",
        "history",
        "a quantum computer",
        "the moon",
        "philosophy",
        "a compiler",
        "the internet",
        "poetry",
        "biology",
        "tax law",
        "chess",
        "cooking",
    ),
)
