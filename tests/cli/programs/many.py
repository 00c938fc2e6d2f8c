"""Several functions, a class with a parameter, a generator: nothing is the only one."""

import lorry

app = lorry.App("many")


@app.function()
def count(upto: int = 3):
    yield from range(upto)


@app.function()
def fail(text: str = "no luck"):
    try:
        {}["missing"]
    except KeyError as problem:
        error = ValueError(text)
        error.add_note("a note of the user")
        raise error from problem


@app.cls()
class Greeter:
    greeting: str = lorry.parameter(default="Hello")

    @lorry.method()
    def greet(self, name: str):
        return f"{self.greeting}, {name}"
