from concurrent.futures import ProcessPoolExecutor


def hello(name: str) -> str:
    return f"Hello {name}"


if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        print(pool.submit(hello, "world").result())
