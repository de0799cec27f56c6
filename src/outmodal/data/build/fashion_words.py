"""The words of fashion-speech: class names, voices, carrier phrases, templates and descriptions.

`TRAIN` and `TEST` share no voice variant, no text template and no description. (Two of the
accents are shared; a voice is an accent with a variant.) All of the text is this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass

CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

NAMES = (
    ("t-shirt", "tee", "top"),
    ("trousers", "pair of trousers", "pants"),
    ("pullover", "jumper", "sweater"),
    ("dress", "gown", "frock"),
    ("coat", "overcoat", "jacket"),
    ("sandal", "strappy sandal", "open sandal"),
    ("shirt", "button-up shirt", "blouse"),
    ("sneaker", "running shoe", "trainer"),
    ("bag", "handbag", "purse"),
    ("ankle boot", "boot", "leather boot"),
)
"""What a written template may call each class."""


@dataclass(frozen=True)
class Wording:
    """What one split may say and write.

    Attributes:
        accents: eSpeak voice files.
        variants: eSpeak voice variants; `accent+variant` is a voice.
        carriers: Phrases that a spoken class name is put into.
        templates: Phrases that a written class name is put into.
        descriptions: For each class, sentences that do not name it.
    """

    accents: tuple[str, ...]
    variants: tuple[str, ...]
    carriers: tuple[str, ...]
    templates: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]


def _names(line: str) -> tuple[str, ...]:
    return tuple(line.split())


TRAIN = Wording(
    accents=("gmw/en-US", "gmw/en", "gmw/en-GB-x-rp", "gmw/en-GB-x-gbclan", "gmw/en-029"),
    variants=_names(
        "m1 m2 m3 m5 m6 m8 f1 f2 f4 Alex Andrea Annie Denis Diogo Gene Henrique Jacky Lee Marco "
        "Michael Mike Nguyen Storm adam antonio aunty belinda boris caleb ed edward grandma "
        "grandpa iven iven2 john klatt klatt2 klatt5 linda marcelo max michel norbert pablo "
        "quincy rob sandro steph steph2 travis zac"
    ),
    carriers=("{}", "{}", "a {}", "the {}"),
    templates=(
        "a photo of a {}",
        "this is a {}",
        "{}",
        "a picture showing one {}",
        "shop photo: {}",
        "the {} in our catalogue",
        "a grey image of a {}",
        "here you can see a {}",
        "item of clothing: {}",
        "one {} on a black background",
    ),
    descriptions=(
        (
            "short sleeves and a round neck, worn on the upper body",
            "light cotton for summer with a printed chest",
            "no buttons, no collar, sleeves stop above the elbow",
            "casual jersey worn on warm days",
            "thin upper body garment with short arms",
            "worn under other clothes or alone at the beach",
        ),
        (
            "two long legs from the waist to the feet",
            "lower body garment held up with a belt",
            "denim with pockets on the hips",
            "covers both legs and closes with a zip",
            "straight narrow legs hanging from the waist",
            "worn below the belt, reaches down to the shoes",
        ),
        (
            "knitted wool with long sleeves, no buttons",
            "warm layer put on over the head",
            "soft knit for cold evenings, worn over another top",
            "long arms, ribbed hem and cuffs, no zip",
            "thick woolen garment for the upper body",
            "cosy knitwear with a crew neck",
        ),
        (
            "one piece from the shoulders to the knees for women",
            "elegant evening garment with a flowing skirt",
            "sleeveless long piece with a narrow waist",
            "worn at weddings and parties, covers body and thighs",
            "a single garment with a skirt below",
            "summer garment with thin straps and a long hem",
        ),
        (
            "long outer layer with buttons in front and a collar",
            "heavy outdoor garment worn in winter",
            "worn over everything else against the cold wind",
            "wool outer garment with lapels and deep pockets",
            "open front with a row of buttons, thick fabric",
            "outermost layer with long sleeves for the street",
        ),
        (
            "open footwear with straps, toes visible",
            "summer footwear for the beach",
            "thin straps across the foot and a heel",
            "shows the bare foot held with leather straps",
            "light open footwear with a flat sole",
            "worn without socks on hot days",
        ),
        (
            "buttons from the collar to the hem, long sleeves, thin fabric",
            "worn at the office with a tie",
            "ironed cotton with a stiff collar and cuffs",
            "checked flannel with a chest pocket",
            "formal upper garment tucked in at the waist",
            "thin woven garment with a buttoned front",
        ),
        (
            "sports footwear with laces and a rubber sole",
            "worn for running and in the gym",
            "low footwear with a padded tongue and white sole",
            "light athletic footwear with cushioning",
            "canvas and rubber, tied with laces",
            "made for jogging on the street",
        ),
        (
            "carried in the hand or over the shoulder",
            "leather container with a handle and clasp",
            "holds a phone, keys and a wallet",
            "square accessory with a long strap",
            "opens with a zip and has inner pockets",
            "not worn, carried with two handles",
        ),
        (
            "high leather footwear that covers the ankle",
            "sturdy footwear for rain and snow",
            "heel and shaft above the foot, closed with a zip",
            "heavy footwear reaching over the ankle",
            "winter footwear with a thick sole",
            "leather shaft around the lower leg and a firm heel",
        ),
    ),
)

TEST = Wording(
    accents=(
        "gmw/en-US",
        "gmw/en",
        "gmw/en-GB-scotland",
        "gmw/en-GB-x-gbcwmd",
        "gmw/en-US-nyc",
    ),
    variants=_names(
        "m4 m7 f3 f5 Alicia Andy Gene2 Hugo Mario Tweaky anika benjamin david edward2 gustave "
        "iven3 kaukovalta klatt3 klatt4 miguel paul pedro robert shelby steph3 victor"
    ),
    carriers=("{}", "{}", "my {}", "this {}"),
    templates=(
        "an image of the {}",
        "product: {}",
        "it looks like a {}",
        "a small picture of a {}",
        "someone sells a {}",
    ),
    descriptions=(
        (
            "a cotton piece with short arms and no collar",
            "summer upper garment with a print on the chest",
            "simple round neck jersey with short sleeves",
        ),
        (
            "a garment with two legs and a waist button",
            "long legs with pockets and a zip at the belt",
            "denim for the lower body",
        ),
        (
            "woolen knit with long arms for cold days",
            "soft knitwear without buttons pulled over the head",
            "thick knit layer with ribbed cuffs",
        ),
        (
            "one long piece with a skirt for a party",
            "garment for women with a narrow waist and flowing hem",
            "evening piece with straps that ends at the knees",
        ),
        (
            "outer layer with lapels for winter streets",
            "heavy buttoned garment worn over everything",
            "wool outdoor layer with collar and deep pockets",
        ),
        (
            "footwear with thin straps showing the toes",
            "open sole for summer and the beach",
            "bare foot held by leather straps",
        ),
        (
            "thin cotton with collar and buttons for the office",
            "woven garment with cuffs and a buttoned front",
            "flannel with a stiff collar and chest pocket",
        ),
        (
            "athletic footwear with laces for running",
            "rubber sole and padded tongue for the gym",
            "low laced sports footwear with cushioning",
        ),
        (
            "leather accessory with handles to carry keys",
            "held over the shoulder by a long strap",
            "container with a clasp for a wallet and a phone",
        ),
        (
            "leather footwear up to the ankle for winter",
            "closed footwear with a heel and a zip on the shaft",
            "thick soled footwear for snow that covers the ankle",
        ),
    ),
)
