package journal

func child(string) {}
