from medreason.config import command
def task(c): print(c)
if __name__ == "__main__": command(task, "train")
