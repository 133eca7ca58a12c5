"""The values that fill the slots of edgetune:home: those that training may use and those kept for the test split.

make.py draws from here. Titles and artists are invented; no list is copied.
A held-out value must not be a span of any training or evaluation prompt; tests/assets/test_home.py checks it.
"""

# The JSON field that each slot of a pattern fills.
FIELD_OF_SLOT: dict[str, str] = {
    "room": "room",
    "device": "device",
    "light": "device",
    "heating": "device",
    "speaker": "device",
    "opening": "device",
    "door": "device",
    "entry": "device",
    "color": "color",
    "level": "level",
    "degrees": "degrees",
    "person": "person",
    "title": "title",
    "artist": "artist",
    "genre": "genre",
    "duration": "duration",
    "length": "duration",
    "label": "name",
    "item": "item",
    "counted": "item",
    "quantity": "quantity",
    "list": "list",
    "power": "state",
    "gap": "state",
    "bolt": "state",
}


def split(text: str) -> tuple[str, ...]:
    """The comma-separated values of a text; a line break within a value counts as a space."""
    return tuple(" ".join(part.split()) for part in text.split(","))


LIGHTS = split("""
    light, lights, lamp, desk lamp, floor lamp, ceiling light, ceiling lights, bedside lamp, table lamp, night
    light, reading lamp, fairy lights, spotlights, spotlight, wall lights, led strip, string lights, chandelier,
    mirror light, corner lamp, standing lamp, shelf lights, cabinet lights, piano lamp, stair lights, clip lamp
""")
APPLIANCES = split("""
    fan, ceiling fan, heater, space heater, tv, television, radio, stereo, humidifier, dehumidifier, air purifier,
    air conditioner, kettle, coffee maker, toaster, robot vacuum, electric blanket, projector, game console,
    printer, computer, monitor, router, washing machine, dryer, dishwasher, extractor fan, alarm, camera, baby
    monitor, diffuser, fireplace, towel warmer, slow cooker, rice cooker, record player, speakers, fountain,
    aquarium pump, charger, sewing machine, treadmill, plug, outlet, power strip, water heater, bug zapper, doorbell
""")
ENTRIES = split("""
    front door, back door, side door, garage door, main door, cellar door, kitchen door, patio door, garden gate,
    front gate, gate, side gate, office door, driveway gate, balcony door, back gate, basement door, pool gate,
    side entrance, main gate
""")
CONTAINERS = split("""
    shed, safe, mailbox, bike shed, car, medicine cabinet, wine cabinet, tool shed, parcel box, toy chest
""")
PEOPLE = split("""
    anna, ben, carla, david, elena, felix, grace, hugo, irene, jack, karin, leo, maria, nils, olga, paul, rosa,
    simon, tara, victor, wendy, yusuf, zoe, amir, bella, colin, dora, ethan, fiona, george, hannah, ivan, julia,
    kevin, lucy, martin, nora, oscar, petra, ralf, sofia, thomas, ursula, walter, priya, chen, fatima, diego, aisha,
    kenji, grandma, grandpa, the plumber, the cleaner, the dog sitter, the neighbour
""")
SURNAMES = split("""
    holloway, brandt, castell, durrow, eastwick, farrow, grantley, hale, ivers, jasper, kestrel, lorne, marlow,
    norwood, oakes, penrose, quill, rowan, stroud, thorne, underhill, vale, whitlock, yarrow
""")
BAND_STARTS = split("""
    copper, velvet, paper, broken, electric, lonely, golden, hollow, distant, wooden, silver, restless, crooked,
    frozen, gentle, wild, tin, summer, neon, quiet
""")
BAND_ENDS = split("""
    foxes, riders, pilots, gardens, sailors, wolves, mirrors, brothers, sisters, machines, sparrows, dancers,
    rivers, poets, ghosts, strangers, tigers, kings, clouds, engines
""")
TITLE_STARTS = split("""
    midnight, sunken, paper, blue, stubborn, broken, golden, city, winter, crystal, dusty, patient, falling, gentle,
    hidden, last, lonely, morning, northern, open, marigold, rainy, secret, slow, sunday, sweet, tender, wild,
    electric, velvet, yellow, burning, first, little, ocean, second, shallow, tired, wooden, yesterday
""")
TITLE_ENDS = split("""
    train, moon, river, road, dreams, heart, rain, letters, sky, dance, fire, garden, ghosts, harbour, highway,
    home, island, kisses, lights, love, machine, mountain, memory, night, promise, shadows, smile, song, stars,
    station, storm, street, sunrise, tears, tide, waltz, waves, whisper, window, wine
""")
ROUND_NUMBERS = tuple(range(5, 101, 5))

SEEN: dict[str, tuple[str | int, ...]] = {
    "room": split("""
        kitchen, bedroom, living room, bathroom, hallway, office, dining room, garage, basement, attic, nursery,
        guest room, laundry room, study, library, playroom, pantry, workshop, conservatory, entrance hall, upstairs
        hall, kids room, game room, music room, gym, cellar, porch, landing, utility room, master bedroom,
        cloakroom, lounge, family room, spare room, shed, studio
    """),
    "device": LIGHTS + APPLIANCES,
    "light": LIGHTS,
    "heating": split("""
        thermostat, heating, heater, radiator, air conditioner, floor heating, air con, boiler, climate control,
        heat pump, space heater, panel heater
    """),
    "speaker": split("""
        speaker, speakers, tv, radio, stereo, television, music, smart speaker, headphones, record player, sound
        system, alarm clock, piano, projector, laptop, bluetooth speaker
    """),
    "opening": split("""
        blinds, curtains, shutters, window, windows, skylight, roof window, roller blind, venetian blinds, drapes,
        shades, sliding door, balcony door, french doors, vent, air vent, side window, big window, blackout
        curtains, sun shade, left blind, right curtain, small window, roof hatch
    """),
    "door": ENTRIES + CONTAINERS,
    "entry": ENTRIES,
    "color": split("""
        red, green, blue, yellow, orange, purple, pink, white, warm white, cool white, violet, turquoise, gold,
        lime, navy, lavender, magenta, cyan, soft pink, deep blue, bright green, sky blue, dark red, pale yellow,
        rose, olive, light green, deep purple
    """),
    "level": ROUND_NUMBERS * 3 + tuple(range(1, 101)),
    "degrees": tuple(range(14, 29)) * 2 + tuple(range(5, 31)) + tuple(range(58, 83)),
    "person": PEOPLE,
    "title": tuple(f"{start} {end}" for start in TITLE_STARTS for end in TITLE_ENDS),
    "artist": tuple(f"the {start} {end}" for start in BAND_STARTS for end in BAND_ENDS)
    + tuple(f"{name} {surname}" for name in PEOPLE[:16] for surname in SURNAMES),
    "genre": split("""
        jazz, rock, classical, blues, country, folk, disco, reggae, techno, pop, soul, funk, metal, punk, opera,
        ambient, house, salsa, swing, gospel, indie, lullaby, hip hop, smooth jazz, hard rock, dinner, workout,
        christmas
    """),
    "duration": (
        *("1 minute", "1 hour", "90 seconds"),
        *(f"{n} minutes" for n in range(2, 61)),
        *(f"{n} seconds" for n in range(10, 61, 5)),
        *(f"{n} hours" for n in range(2, 13)),
    ),
    # No 8, 11 or 18 here: "a 8 minute timer" is not what anyone says.
    "length": (
        *(f"{n} minute" for n in range(1, 61) if n not in (8, 11, 18)),
        *(f"{n} second" for n in range(10, 61, 5)),
        *(f"{n} hour" for n in range(1, 8)),
    ),
    "label": split("""
        pasta, eggs, rice, laundry, nap, pizza, bread, cake, tea, coffee, homework, workout, potatoes, chicken,
        soup, cookies, washing, shower, break, meeting, dough, roast, noodles, steak, beans, muffins, study, bath,
        walk, garden, sprinklers, fish, lasagna, popcorn, face mask, reading, piano practice, game, phone call, baby
        bottle
    """),
    "item": split("""
        milk, bread, butter, cheese, flour, sugar, salt, pepper, rice, pasta, coffee, green tea, oat milk, olive
        oil, honey, jam, peanut butter, yogurt, cream, toilet paper, paper towels, dish soap, shampoo, toothpaste,
        hand soap, sun cream, cat food, dog food, bird seed, bin bags, baking powder, cinnamon, tomato sauce,
        ketchup, mustard, soy sauce, vinegar, chicken, ham, minced beef, salmon, tuna, tofu, spinach, lettuce,
        broccoli, garlic, ginger, parsley, basil, orange juice, apple juice, sparkling water, red wine, ice cream,
        dark chocolate, popcorn, cereal, oats, raisins, almonds, walnuts, washing powder, fabric softener, sponge
        cloths, wrapping paper, sticky tape, glue, white paint, sandpaper, potting soil, lamp oil, duct tape,
        printer paper, ink, bubble wrap, birthday cards, a phone charger, a torch, a hammer, a raincoat, sunglasses,
        hiking boots, wool socks, a sleeping bag, a toothbrush, cough syrup, plasters, vitamins, eye drops, nail
        polish, baby wipes, frozen peas, cottage cheese, maple syrup, brown sugar, corn flakes, coconut milk, chili
        flakes, sour cream, rye bread, goat cheese
    """),
    "counted": split("""
        lemons, apples, bananas, oranges, onions, carrots, potatoes, tomatoes, cucumbers, avocados, eggs, pears,
        peaches, limes, mushrooms, bagels, croissants, light bulbs, batteries, candles, pencils, notebooks,
        envelopes, stamps, paper cups, balloons, towels, screws, flower pots, tea bags, melons, radishes, zucchinis,
        buns, frozen pizzas, water bottles, plates, napkins, hangers, picture frames
    """),
    "quantity": tuple(range(2, 25)),
    "list": split("""
        shopping, grocery, to do, packing, hardware, party, christmas, wish, camping, weekend, pharmacy, market,
        household, gift, food, repair, moving, school
    """),
    "power": ("on", "off", "running"),
    "gap": ("open", "closed", "shut"),
    "bolt": ("locked", "unlocked"),
}

HELD_OUT_LIGHTS = split("""
    lava lamp, lantern, pendant light, picture light, rope lights, salt lamp, track lights, globe lamp
""")
HELD_OUT_ENTRIES = split("barn door, boat house, summer house, rear gate, screen door")

HELD_OUT: dict[str, tuple[str, ...]] = {
    "room": split("den, sun room, greenhouse, loft, dressing room, home cinema, mud room, veranda"),
    "device": split("""
        bread maker, tower fan, massage chair, milk frother, popcorn machine, scanner, exercise bike, yogurt maker
    """)
    + HELD_OUT_LIGHTS,
    "light": HELD_OUT_LIGHTS,
    "heating": split("convector, wall heater, towel radiator"),
    "speaker": split("soundbar, subwoofer, jukebox, ceiling speakers"),
    "opening": split("louvres, bay window, roman blinds, patio doors, net curtains, folding door"),
    "door": (*HELD_OUT_ENTRIES, "letter box"),
    "entry": HELD_OUT_ENTRIES,
    "color": split("teal, amber, coral, mint green, ice blue, crimson, peach"),
    "person": split("bruno, ingrid, mateo, naomi, the gardener"),
    "title": split("marble staircase, lantern parade, autumn ferry, crooked compass, silver anchor, thunder lullabies"),
    "artist": split("the marble owls, the scarlet drummers, pavel winterbourne, odette larsson, the midnight bakers"),
    "genre": split("bossa nova, flamenco, bluegrass"),
    "label": split("risotto, quiche, meditation, pancakes, hair dye"),
    "item": split("quinoa, maple candy, shaving foam, pumpkin soup, a tent, mosquito spray, lentils, rose water"),
    "counted": split("mangoes, artichokes, clothes pegs, paint brushes"),
    "list": split("picnic, holiday, bakery"),
}
