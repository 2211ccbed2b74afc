/** Which post the next like is for. Posts count from 1. */
export interface Distribution {
  readonly name: string
  readonly posts: number
  next(): number
}

export const manyPosts = 100_000

const anyOf = (posts: number) => 1 + Math.floor(Math.random() * posts)

export const hotPost: Distribution = { name: 'one hot post', posts: 1000, next: () => 1 }

export const uniform: Distribution = { name: `${manyPosts.toLocaleString('en-US')} posts, uniform`, posts: manyPosts, next: () => anyOf(manyPosts) }

/** Half of all likes on one post, as when a celebrity posts. */
export const halfHot: Distribution = {
  name: `half on one post, half over ${manyPosts.toLocaleString('en-US')}`,
  posts: manyPosts,
  next: () => (Math.random() < 0.5 ? 1 : anyOf(manyPosts)),
}

/** Zipf's law with exponent 1: the n-th post is liked 1/n times as often as the first (which has 8 % of the likes here). */
export const zipf: Distribution = { name: `${manyPosts.toLocaleString('en-US')} posts, Zipf`, posts: manyPosts, next: zipfian(manyPosts) }

function zipfian(posts: number): () => number {
  let sum = 0
  const cumulated = Float64Array.from({ length: posts }, (_, index) => (sum += 1 / (index + 1)))
  return () => {
    const wanted = Math.random() * sum
    let low = 0
    let high = posts - 1
    while (low < high) {
      const middle = (low + high) >> 1
      if ((cumulated[middle] ?? 0) < wanted) low = middle + 1
      else high = middle
    }
    return low + 1
  }
}
