/** @import { DashboardData } from '../src/http/dashboard.ts' */

const tokenName = 'pgtally token'
const patienceMs = 10_000

/** The token is kept by this tab only, and sent with what asks for data: never as part of an address, nor as a cookie. */
export const token = {
  get: () => sessionStorage.getItem(tokenName),
  /** @param {string} text */
  keep: (text) => sessionStorage.setItem(tokenName, text),
  forget: () => sessionStorage.removeItem(tokenName),
}

export class TokenRefused extends Error {}

/**
 * @returns {Promise<DashboardData>}
 * @throws TokenRefused; TypeError and others when the worker does not answer
 */
export async function fetchData() {
  const known = token.get()
  const response = await fetch('dashboard/data.json', {
    headers: known === null ? {} : { authorization: `Bearer ${known}` },
    cache: 'no-store',
    // Or the browser would ask for a name and password by itself.
    credentials: 'omit',
    signal: AbortSignal.timeout(patienceMs),
  })
  if (response.status === 401) throw new TokenRefused()
  if (!response.ok) throw new Error(`It answered ${response.status}.`)
  return response.json()
}
