import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'

/** Uses the backend as its clients do. */
export async function selfTest(url: string): Promise<void> {
  const request = async (method: string, path: string) => {
    const response = await fetch(url + path, { method })
    return { status: response.status, body: response.status === 204 ? undefined : ((await response.json()) as unknown) }
  }
  const get = async (path: string) => (await request('GET', path)).body
  const until = async (path: string, right: (body: unknown) => boolean) => {
    const deadline = performance.now() + 20_000
    while (!right(await get(path))) {
      assert.ok(performance.now() < deadline, `${path} is still ${JSON.stringify(await get(path))}`)
      await sleep(20)
    }
  }
  const users = Array.from({ length: 100 }, (_, index) => index + 1)
  const count = async () => ((await get('/posts/1/likes')) as { count: number }).count

  await Promise.all(users.map((user) => request('PUT', `/posts/1/likes/${user}`)))
  assert.equal((await request('PUT', '/posts/1/likes/7')).status, 204)
  assert.equal(await count(), 100)
  await Promise.all([1, 2, 3].map((user) => request('DELETE', `/posts/1/likes/${user}`)))
  assert.equal((await request('DELETE', '/posts/1/likes/3')).status, 204)
  assert.equal(await count(), 97)
  await request('PUT', '/posts/1/likes/2')
  await request('PUT', '/posts/2/likes/1')
  await until('/posts/1', (post) => isDeepStrictEqual(post, { id: 1, title: 'Notes on the Analytical Engine', like_count: 98 }))
  await until('/users/2/notifications', (notifications) => isDeepStrictEqual(notifications, ['Grace 1 likes your post "Nanoseconds"']))
  await until('/users/1/notifications', (notifications) => (notifications as string[]).length >= 99)
  const notifications = (await get('/users/1/notifications')) as string[]
  assert.equal(notifications.length, 99)
  assert.equal(new Set(notifications).size, 99)
  assert.ok(notifications.includes('Barbara 8 likes your post "Notes on the Analytical Engine"'))

  assert.equal((await request('PUT', '/posts/99/likes/1')).status, 404)
  assert.equal((await request('GET', '/posts/99')).status, 404)
  assert.equal((await request('PUT', '/posts/one/likes/1')).status, 400)
}
