import lorry

app = lorry.App("hello")


@app.function()
def hello(name: str) -> str:
    return f"Hello {name}"


@app.local_entrypoint()
def main() -> None:
    print(hello.remote("world"))


if __name__ == "__main__":
    with app.run():
        main()
