"""A class whose object lives in a container: set up once, used by many calls.

Run it:

    lorry run examples/class_with_state.py
"""

import lorry

app = lorry.App("class-with-state")


@app.cls(scaledown_window="5m", max_containers=1)
class Vocabulary:
    language: str = lorry.parameter(default="en")  # each value has containers of its own

    @lorry.enter()
    def load(self):
        """Once per container: this is where a model would be loaded."""
        print(f"loading {self.language}")
        self.words: dict[str, int] = {}

    @lorry.method()
    def learn(self, text: str) -> int:
        for word in text.split():
            self.words.setdefault(word, len(self.words))
        return len(self.words)

    @lorry.exit()
    def goodbye(self):
        print(f"{self.language} knew {len(self.words)} words")


@app.local_entrypoint()
def main():
    english, german = Vocabulary(), Vocabulary(language="de")
    print("en:", english.learn.remote("to be or not to be"))
    print("en:", english.learn.remote("that is the question"))
    print("de:", german.learn.remote("sein oder nicht sein"))
