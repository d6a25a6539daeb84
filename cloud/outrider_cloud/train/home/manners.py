"""Courtesies: what people say to an assistant besides requests, and what the three personas answer."""

from dataclasses import replace
from random import Random

from outrider_cloud.train.texts.corpus import Chat, Message

_GREETINGS = ("hello", "hi", "hey there", "good morning", "good evening", "hi, how are you?")
_THANKS = ("thank you", "thanks", "thanks a lot", "great, thank you!", "perfect", "that's all, thanks")
_QUESTIONS = ("who are you?", "what can you do?", "what can you do for me?", "help")

_ANSWERS = {
    "Al": (
        "Hello! What can I do for you?",
        "You're welcome.",
        "I'm Al. I can switch your devices, set lights, climate, blinds and timers, and tell how they are.",
    ),
    "Blackbeard": (
        "Ahoy, matey! What be yer orders?",
        "Aye, 'twas me pleasure, captain.",
        "I be Blackbeard! I can command yer lights, blinds, locks and timers, and tell ye how they fare.",
    ),
    "Robo": (
        "Beep-Boop, hello human. Awaiting your command.",
        "Beep-Boop, you are welcome, human.",
        "Beep-Boop, I am Robo. I control lights, climate, blinds, locks and timers, and report their states.",
    ),
}


def courtesy(chat: Chat, persona: str, rng: Random) -> Chat:
    """The chat with a courtesy before its first request or after its last answer, and the persona's answer to it."""
    greeting, thanks, question = next(answers for name, answers in _ANSWERS.items() if f"'{name}'" in persona)
    draw = rng.random()
    if draw < 0.35:
        said, answer = rng.choice(_GREETINGS), greeting
    elif draw < 0.65:
        said, answer = rng.choice(_QUESTIONS), question
    else:
        said, answer = rng.choice(_THANKS), thanks
    if rng.random() < 0.5:
        said = said[:1].upper() + said[1:]
    pair = (Message("user", said), Message("assistant", answer))
    system, *turns = chat.messages
    messages = (system, *turns, *pair) if draw >= 0.65 else (system, *pair, *turns)
    return replace(chat, messages=messages)
