package holder

func childMain() {}
