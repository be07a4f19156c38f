"""Texts with what is sensitive in them, by hand; people, numbers and keys are invented.

Keys are drawn when they are asked for: none stands in this file, so none can be taken for a leak.
"""

import random
import string

_ALPHANUMERIC = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def drawn(alphabet, length, seed):
    """Return random characters, the same for the same seed."""
    generator = random.Random(seed)
    return "".join(generator.choice(alphabet) for _ in range(length))


def card_number(prefix, length, seed):
    """Return a card number that passes the check of Luhn and belongs to nobody."""
    digits = prefix + drawn(string.digits, length - len(prefix) - 1, seed)
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits + "0"))]
    total = sum(value - 9 if value > 9 else value for value in doubled)
    return digits + str(-total % 10)


def iban(country, account):
    """Return an account number with its check digits."""
    numbers = "".join(str(int(c, 36)) for c in f"{account}{country}00")
    return f"{country}{98 - int(numbers) % 97:02}{account}"


def grouped(number, size=4, by=" "):
    """Return a number as it is printed on a card."""
    return by.join(number[i : i + size] for i in range(0, len(number), size))


def key_block(seed):
    """Return the start of a private key, as a window shows it."""
    body = "\n".join(drawn(_ALPHANUMERIC + "+/", 64, seed + line) for line in range(4))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\n"


SENSITIVE = (
    ("Questions go to martha.quillfeather@brightmoor-labs.com before Friday.", ["email"]),
    ("Signed-off-by: Tobias Wrenfield <t.wrenfield@posteo-mail.de>\n", ["email"]),
    ("cc: j_oakhollow88@gmail.com, finn.mardal@hotmail.co.uk\nsubject: lunch", ["email", "email"]),
    ('{"name": "A. Vance", "mail": "avance@northpier.io", "plan": "pro"}', ["email"]),
    ("Her new address is ilse+books@wolkenhaus.net, the old one is dead.", ["email"]),
    ("Call Ms Larkspur at (415) 867-2291 after nine.", ["phone"]),
    ("You reach the cabin at +49 30 901820 or by radio.", ["phone"]),
    ("Mobile: +44 7400 193345, office closed on Mondays.", ["phone"]),
    ("phone: 2128675522 ext. none", ["phone"]),
    ("My number is 646-312-7788; text me, I never pick up.", ["phone"]),
    (f"Card {grouped(card_number('4', 16, 1))}, expires 09/31, thanks!", ["credit_card"]),
    (f"paid with {card_number('53', 16, 2)} on the second try", ["credit_card"]),
    (f"amex={card_number('37', 15, 3)};cvc=hidden", ["credit_card"]),
    (f"Please wire it to {iban('DE', '370400440532013999')} by the first.", ["iban"]),
    (f"IBAN: {grouped(iban('GB', 'NWBK60161331926877'))}", ["iban"]),
    (f"Kontoinhaber Ruth Ebelin, {iban('NL', 'ABNA0417164311')}", ["iban"]),
    ("login from 93.184.71.204 failed three times for user 1007", ["ip_address"]),
    ("Received: from mx (unknown [2a02:8109:9a3f:1c50:49d2:8f1e:77a3:b1c4])", ["ip_address"]),
    ("The patient, SSN 512-44-7719, was admitted on Tuesday.", ["national_id"]),
    ("ssn: 219-09-7788 | dob withheld", ["national_id"]),
    (f"aws_access_key_id = AKIA{drawn(string.ascii_uppercase + '234567', 16, 4)}", ["access_key"]),
    (f"export GITHUB_TOKEN=ghp_{drawn(_ALPHANUMERIC, 36, 5)}\n", ["access_key"]),
    (f"SLACK: xoxb-{drawn(string.digits, 12, 6)}-{drawn(_ALPHANUMERIC, 24, 7)}", ["access_key"]),
    (f'stripe.api_key = "sk_live_{drawn(_ALPHANUMERIC, 24, 8)}"', ["access_key"]),
    (f"//registry.npmjs.org/:_authToken=npm_{drawn(_ALPHANUMERIC, 36, 9)}", ["access_key"]),
    (f"glpat-{drawn(_ALPHANUMERIC, 20, 10)} goes into the runner", ["access_key"]),
    (f"SG.{drawn(_ALPHANUMERIC, 22, 11)}.{drawn(_ALPHANUMERIC, 43, 12)}", ["access_key"]),
    (f"bot: {drawn('123456789', 9, 13)}:{drawn(_ALPHANUMERIC, 35, 14)}", ["access_key"]),
    (f"AccountKey={drawn(_ALPHANUMERIC + '+/', 86, 15)}==;Endpoint=x", ["access_key"]),
    (key_block(16), ["private_key"]),
    ("id_rsa:\n" + key_block(20).replace("RSA ", ""), ["private_key"]),
    ("postgres://app:t7Qm2vX9kd@db.internal:5432/orders", ["password"]),
    ("DB_PASSWORD=Kf93mzQp2!\nDB_HOST=10.0.0.5", ["password"]),
    ('db_password: "orchid-7-lantern-Q4"', ["password"]),
    ("conn = connect(user='svc', password='Vb8#hTq24z')", ["password"]),
    ("curl -u admin https://ops:9sKw3LmX@metrics.brightmoor-labs.com/api", ["password"]),
    (f'client_secret = "{drawn(_HEX, 40, 21)}"', ["password"]),
    (f"API_KEY: {drawn(_ALPHANUMERIC, 32, 22)}", ["password"]),
    (f"aws_secret_access_key = {drawn(_ALPHANUMERIC + '+/', 40, 23)}", ["password"]),
    (f"The staging token is {drawn(_HEX, 40, 24)}, do not share it.", ["random_string"]),
    (f"Bearer {drawn(_ALPHANUMERIC, 43, 25)}", ["random_string"]),
    (f"session {drawn(_ALPHANUMERIC, 24, 26)} was opened by hand", ["random_string"]),
    (f"AUTH: {drawn(_ALPHANUMERIC, 30, 27)}\n", ["random_string"]),
    ("Reset it for Nora (n.hallbeck@lindwurm.org): password = 'mT5rWq81xz'", ["email", "password"]),
)
"""Each with the kinds that stand in it, as often as they do."""

HARMLESS = (
    "Write to user@example.com or to support@brightmoor-labs.com for help.",
    "git@github.com:torvalds/linux.git and pip install foo@1.2.3 are no addresses.",
    "See Section 9.7.3.1 and 12.2.2.2; the network is 192.168.10.0/24, the mask 255.255.255.0.",
    "It listens on 127.0.0.1:8080 and ::1; upgrade from 2.13.0.4 to 3.0.0.1 first.",
    "In 1947 they made 67,229 of them, in 1946 31,860; pages 1682-1725, lines 100 200 300.",
    "2019-05-18T15:17:08.132263 and Tue May 16 17:18:22 2006 -0700 are points in time.",
    "CVE-2026-120149, ISBN 978-3-16-148410-0, RFC 8259, bpo-43312.",
    "The order 1234567890123456 left the warehouse at 10.30.",
    "commit 3f24b99ea8149c7f0a1b2c3d4e5f60718293a4b5\nAuthor: somebody",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  image.iso",
    "md5 of the file is d41d8cd98f00b204e9800998ecf8427e, as it should be.",
    "id 123e4567-e89b-42d3-a456-426614174000 was dropped from the queue.",
    "password = input('Password: ')\nif not check(password):\n    raise ValueError",
    'config["api_key"] = os.environ["API_KEY"]  # never write it down here',
    "PASSWORD=<your password>\nSECRET_KEY=${SECRET_KEY}\ntoken: {{ vault_token }}",
    "The password is too short: it must have at least 8 characters and 1 digit.",
    "postgresql://user:password@localhost/dbname is how a connection string looks.",
    'secret: "changeme123", password: "xxxxxxxx1"',
    "-----BEGIN PRIVATE KEY----- is the line before a key in PEM.",
    "def test_get_password_from_keyring_returns_None_for_unknown_user(self): ...",
    "https://docs.python.org/3/library/concurrent.futures.html#concurrent.futures.Executor",
    "/usr/lib/python3/dist-packages/NetworkManager/SettingsConnectionUpdate2Flags.py",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/ is the alphabet.",
    "com.brightmoor.orders.web.controller.OrderHistoryController2Factory",
    "x = 0.8414709848078965, y = 351364.18288201344, z = 6.02214076e23",
    "Call me Ishmael. Some years ago, never mind how long precisely, I had little money.",
    "Dial 911 in an emergency, 112 in Europe; extension 4711 is the front desk.",
    "matrix: 100 200 300 400 500; totals: 1 200 000 and 4 500 000 items.",
    "AWS keys start with AKIA, GitHub's with ghp_, GitLab's with glpat-, Slack's with xoxb-.",
    "The Treaty of 1648, the Act of 1701 and the Peace of 1763 settled the rest.",
)
"""Each looks like something it is not."""
