import lorry

app = lorry.App("rooms")
image = lorry.Image.debian_slim().env({"WALL": "white"})


@app.function(image=image, env={"DOOR": "oak"}, secrets=[lorry.Secret.from_dict({"KEY": "under-the-mat"})])
def kitchen():
    return "tea"


@app.function()
def cellar():
    import time

    print("dark", flush=True)
    time.sleep(1000)
