def board_page():
    return b"<html></html>"


async def watch(socket, changes, check):
    await socket.close()
