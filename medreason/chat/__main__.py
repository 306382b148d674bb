from medreason.chat.talk import main

if __name__ == "__main__":
    main()
